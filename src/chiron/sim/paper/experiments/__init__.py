"""The experiments of the evaluation: one file each, listed here in the order of the report."""

from __future__ import annotations

from chiron.config import ConfigError
from chiron.sim.paper.experiment import Experiment
from chiron.sim.paper.experiments.ablation import ABLATION
from chiron.sim.paper.experiments.burstiness import BURSTINESS
from chiron.sim.paper.experiments.convergence import CONVERGENCE
from chiron.sim.paper.experiments.estimator import ESTIMATOR
from chiron.sim.paper.experiments.goals import GOALS_TABLE
from chiron.sim.paper.experiments.head_of_line import HEAD_OF_LINE
from chiron.sim.paper.experiments.headline import HEADLINE
from chiron.sim.paper.experiments.hysteresis import HYSTERESIS
from chiron.sim.paper.experiments.optimisations import OPTIMISATIONS
from chiron.sim.paper.experiments.rates_w_a import RATES_W_A
from chiron.sim.paper.experiments.rates_w_b import RATES_W_B
from chiron.sim.paper.experiments.robustness import ROBUSTNESS_TABLE
from chiron.sim.paper.experiments.second_table import SECOND_TABLE
from chiron.sim.paper.experiments.slo_sweep import SLO_SWEEP
from chiron.sim.paper.experiments.traces import TRACES

EXPERIMENTS: tuple[Experiment, ...] = (
    GOALS_TABLE,
    ROBUSTNESS_TABLE,
    HEADLINE,
    HYSTERESIS,
    ABLATION,
    TRACES,
    OPTIMISATIONS,
    BURSTINESS,
    SLO_SWEEP,
    RATES_W_A,
    RATES_W_B,
    SECOND_TABLE,
    HEAD_OF_LINE,
    ESTIMATOR,
    CONVERGENCE,
)
"""In the order of the report, which is that of the runs: whoever ends it early has the first ones."""


def chosen(names: str | None) -> tuple[Experiment, ...]:
    """The experiments of these names, comma-separated, in the report's order; None: all of them.

    Raises ConfigError for an unknown name.
    """
    if names is None:
        return EXPERIMENTS
    wanted = [name.strip() for name in names.split(",")]
    known = {each.name for each in EXPERIMENTS}
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--only: unknown experiment {name!r}; known are {', '.join(sorted(known))}")
    return tuple(each for each in EXPERIMENTS if each.name in wanted)
