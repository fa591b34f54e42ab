"""The experiments of the evaluation: one file each, listed here in the order of the report."""

from __future__ import annotations

from chiron.config import ConfigError
from chiron.sim.paper.experiment import Experiment
from chiron.sim.paper.experiments.rates_w_a import RATES_W_A

EXPERIMENTS: tuple[Experiment, ...] = (RATES_W_A,)
"""In the order of the report."""


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
