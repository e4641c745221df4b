"""How controllers are judged: against a sweep of schedules, over many cells.

A cell is a task, an inner optimizer, a starting learning rate and a horizon. All methods see the
same initial parameters and batches for a seed. A method's ratio is its final loss over that of an
oracle: the best of 13 constant rates under three schedules, chosen on other seeds than it is scored
on.
"""

from optax_meta.meta.protocol.cells import FIGURES as FIGURES
from optax_meta.meta.protocol.contenders import Contender as Contender
from optax_meta.meta.protocol.contenders import Factory as Factory
from optax_meta.meta.protocol.contenders import Run as Run
from optax_meta.meta.protocol.judging import judge as judge
from optax_meta.meta.protocol.running import CHECKPOINTS as CHECKPOINTS
from optax_meta.meta.protocol.schedules import SCHEDULES as SCHEDULES
from optax_meta.meta.protocol.schedules import SWEEP_RATES as SWEEP_RATES
from optax_meta.meta.protocol.schedules import schedule as schedule
from optax_meta.meta.protocol.scoring import CAP as CAP
from optax_meta.meta.protocol.scoring import Score as Score
from optax_meta.meta.protocol.scoring import best_single as best_single
from optax_meta.meta.protocol.scoring import comparable as comparable
from optax_meta.meta.protocol.scoring import ratios as ratios
from optax_meta.meta.protocol.scoring import resampled as resampled
from optax_meta.meta.protocol.scoring import score as score
