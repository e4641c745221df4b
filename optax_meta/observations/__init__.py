"""State encoders: what a policy sees of the run.

`classic` is the state of eight features, `scale_free` the one of the shipped policies. Every
feature is finite and in [-1, 1] for any input.
"""

from collections.abc import Callable, Mapping

from optax_meta.base import Encoder
from optax_meta.observations.classic import ClassicState as ClassicState
from optax_meta.observations.classic import classic as classic
from optax_meta.observations.features import progress as progress
from optax_meta.observations.features import squash as squash
from optax_meta.observations.features import squash_log as squash_log
from optax_meta.observations.features import trend as trend
from optax_meta.observations.scale_free import ScaleFreeState as ScaleFreeState
from optax_meta.observations.scale_free import scale_free as scale_free

ENCODERS: Mapping[str, Callable[..., Encoder]] = {"classic": classic, "scale_free": scale_free}
"""Encoders that a saved policy can name; each is built again from its `config`."""
