"""What a policy may do: moves of one hyperparameter, and the spaces they span.

A `Move` lists the choices for one hyperparameter: factors to scale it by, increments to add, steps
in log-space, or levels to set it to. An `ActionSpace` combines moves; an action is one integer that
picks a choice of every move, counted like `numpy.unravel_index` (the last move varies fastest).
"""

from optax_meta.actions.cards import card_of as card_of
from optax_meta.actions.cards import space_of as space_of
from optax_meta.actions.heads import hold_logits as hold_logits
from optax_meta.actions.heads import log_probs as log_probs
from optax_meta.actions.moves import Move as Move
from optax_meta.actions.moves import add as add
from optax_meta.actions.moves import check_bounds as check_bounds
from optax_meta.actions.moves import level as level
from optax_meta.actions.moves import log_step as log_step
from optax_meta.actions.moves import positions as positions
from optax_meta.actions.moves import scale as scale
from optax_meta.actions.spaces import ActionSpace as ActionSpace
from optax_meta.actions.spaces import apply as apply
from optax_meta.actions.spaces import classic as classic
from optax_meta.actions.spaces import factored as factored
from optax_meta.actions.spaces import factors as factors
from optax_meta.actions.spaces import hold as hold
from optax_meta.actions.spaces import joint as joint
from optax_meta.actions.spaces import labels as labels
from optax_meta.actions.spaces import learning_rate as learning_rate
from optax_meta.actions.spaces import levels as levels
from optax_meta.actions.spaces import ordered as ordered
from optax_meta.actions.spaces import wider as wider
