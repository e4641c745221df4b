# The public names, each once; `__init__.py` reads this file and imports them on first use.
from optax_meta import actions as actions
from optax_meta import observations as observations
from optax_meta import plots as plots
from optax_meta import rewards as rewards
from optax_meta import tasks as tasks
from optax_meta.base import Controller as Controller
from optax_meta.base import Encoder as Encoder
from optax_meta.checkpoints import graft as graft
from optax_meta.checkpoints import load_policy as load_policy
from optax_meta.checkpoints import save_policy as save_policy
from optax_meta.controllers.constant import constant as constant
from optax_meta.controllers.hypergradient import hypergradient as hypergradient
from optax_meta.controllers.learned import learned as learned
from optax_meta.controllers.online import extract_policy as extract_policy
from optax_meta.controllers.online import reinforce as reinforce
from optax_meta.controllers.plateau import plateau as plateau
from optax_meta.controllers.warmup import join as join
from optax_meta.controllers.warmup import warmup as warmup
from optax_meta.controllers.warmup import warmup_plateau as warmup_plateau
from optax_meta.evaluation import compare as compare
from optax_meta.metrics import Metrics as Metrics
from optax_meta.policies import Policy as Policy
from optax_meta.policies import PolicyNetwork as PolicyNetwork
from optax_meta.policies import init_policy as init_policy
from optax_meta.recording import Record as Record
from optax_meta.recording import record as record
from optax_meta.train_state import TrainState as TrainState
from optax_meta.transform import ControlState as ControlState
from optax_meta.transform import control_hyperparams as control_hyperparams
from optax_meta.transform import hyperparams as hyperparams

__version__: str
