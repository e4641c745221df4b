"""Methods compared fairly: same initial parameters, same batches, several seeds."""

from optax_meta.meta.evaluation.comparing import compare as compare
from optax_meta.meta.evaluation.methods import METHODS as METHODS
from optax_meta.meta.evaluation.methods import Method as Method
from optax_meta.meta.evaluation.results import Comparison as Comparison
from optax_meta.meta.evaluation.results import Interrupted as Interrupted
from optax_meta.meta.evaluation.results import MethodResult as MethodResult
from optax_meta.meta.evaluation.summaries import Interval as Interval
from optax_meta.meta.evaluation.summaries import Summary as Summary
from optax_meta.meta.evaluation.summaries import interval as interval
from optax_meta.meta.evaluation.summaries import summarize as summarize
from optax_meta.meta.versions import library_versions as library_versions
