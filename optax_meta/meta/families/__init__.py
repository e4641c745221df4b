"""Task families to meta-train on: small, cheap, and as unlike each other as they can be.

None shares its data, its architecture and its loss with a task that controllers are compared on,
though one of the three may be alike: cross-entropy is cross-entropy. What is
drawn for each task: its data, label noise, conditioning, initial scale, the scale of the loss and
the units in which the parameters are stored.

A run is trained on noisy targets and, where these are known, judged against those without noise:
the loss above the irreducible one. Noise would hide what the last steps of a run are worth.
"""

from optax_meta.meta.families.catalogue import FAMILIES as FAMILIES
from optax_meta.meta.families.catalogue import OVERFITTED as OVERFITTED
from optax_meta.meta.families.polynomials import products as products
from optax_meta.meta.families.polynomials import quadratics as quadratics
from optax_meta.meta.families.real import tables as tables
from optax_meta.meta.families.scales import Scales as Scales
from optax_meta.meta.families.shifting import drifting as drifting
from optax_meta.meta.families.teachers import networks as networks
from optax_meta.meta.families.text import bigrams as bigrams
from optax_meta.meta.families.text import transformers as transformers
