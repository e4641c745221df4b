"""Pictures of runs: every function draws on matplotlib axes and returns them.

Needs the extra `report`. Works in a notebook and in the report alike.
"""

from optax_meta.reports.curves import running_mean as running_mean
from optax_meta.reports.plots.cells import performance_profile as performance_profile
from optax_meta.reports.plots.cells import start_sensitivity as start_sensitivity
from optax_meta.reports.plots.policies import action_histogram as action_histogram
from optax_meta.reports.plots.policies import decisions as decisions
from optax_meta.reports.plots.policies import rewards_by_action as rewards_by_action
from optax_meta.reports.plots.runs import loss_curves as loss_curves
from optax_meta.reports.plots.runs import ranking as ranking
from optax_meta.reports.plots.runs import timeline as timeline
from optax_meta.reports.plots.style import COLORS as COLORS
from optax_meta.reports.plots.style import line_style as line_style
