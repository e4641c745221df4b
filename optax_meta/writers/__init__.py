"""Where the rows of a run go: files, TensorBoard, experiment trackers, the terminal, a table.

A writer takes what `optax_meta.record(opt_state)` returns: one row, or rows stacked by `lax.scan`.
One destination a file; the packages they need are optional and imported where they are used.
"""

from optax_meta.writers.event_files import tensorboard as tensorboard
from optax_meta.writers.json_lines import Follower as Follower
from optax_meta.writers.json_lines import jsonl as jsonl
from optax_meta.writers.json_lines import read_card as read_card
from optax_meta.writers.json_lines import read_rows as read_rows
from optax_meta.writers.live_line import console as console
from optax_meta.writers.mlflow_run import mlflow as mlflow
from optax_meta.writers.table import frame as frame
from optax_meta.writers.weights_and_biases import wandb as wandb
from optax_meta.writers.writer import Writer as Writer
from optax_meta.writers.writer import tee as tee
