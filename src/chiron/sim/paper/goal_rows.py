"""The rows of the goals: workloads, and the GPU-hours over the lower bound that are to be reached on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chiron.sim.paper.experiment import SkippedError
from chiron.sim.paper.workloads import model, on_a100s
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Backlog, Replay, Traffic

CONVERSATIONS = "AzureLLMInferenceTrace_conv.csv"
CODE = "AzureLLMInferenceTrace_code.csv"
"""Names of the traces' files, as the Azure Public Dataset (2023) has them."""


@dataclass(frozen=True, slots=True)
class GoalRow:
    """One workload and its goal."""

    goal: float
    """GPU-hours over the lower bound, at most."""
    seen: str
    """What a prototype was seen to reach, for comparison."""
    scenario: Callable[[Path | None], Scenario]
    """Made with the folder of production traces. Raises SkippedError where it needs one."""
    replays: bool = False
    """It needs a trace."""
    heavy: bool = False
    """A run takes longer than many others together."""


def trace_file(traces: Path | None, name: str) -> str:
    """The absolute path of a trace. Raises SkippedError when there is no such file."""
    if traces is None:
        raise SkippedError(f"needs --traces, a folder with {name}")
    file = traces / name
    if not file.is_file():
        raise SkippedError(f"{traces} has no {name}")
    return str(file.absolute())


def _w_a(
    name: str, model_name: str, rate: float, instances: int, duration_s: float = 3600, cv: float = 1.0
) -> Callable[[Path | None], Scenario]:
    made = model(model_name, 0)
    return lambda _traces: on_a100s(
        name,
        [model(model_name, instances * made.profile.gpus)],
        traffic=[Traffic(model=model_name, rate_per_s=rate, cv=cv)],
        duration_s=duration_s,
    )


def _w_b(
    name: str, model_name: str, rate: float, backlog: int, instances: int
) -> Callable[[Path | None], Scenario]:
    made = model(model_name, 0)
    return lambda _traces: on_a100s(
        name,
        [model(model_name, instances * made.profile.gpus)],
        traffic=[Traffic(model=model_name, rate_per_s=rate)],
        backlogs=[Backlog(model=model_name, requests=backlog, arrive_s=900)],
        duration_s=5400,
    )


def _conversations(traces: Path | None) -> Scenario:
    return on_a100s(
        "Azure conversations 50/s",
        [model("8b", 5)],
        replays=[Replay(model="8b", file=trace_file(traces, CONVERSATIONS), format="azure", rate_per_s=50)],
        duration_s=3600,
    )


GOALS: Mapping[str, GoalRow] = {
    "w_b-8b-1m": GoalRow(
        1.03, "1.012–1.016", _w_b("W_B 8B 100/s + 1,000,000", "8b", 100, 1_000_000, 6), heavy=True
    ),
    "w_b-8b-200k": GoalRow(1.03, "1.012–1.016", _w_b("W_B 8B 100/s + 200,000", "8b", 100, 200_000, 6)),
    "w_b-8b-20k": GoalRow(
        1.08, "1.07, best fixed fleet 1.008", _w_b("W_B 8B 100/s + 20,000", "8b", 100, 20_000, 6)
    ),
    "w_a-8b-700": GoalRow(1.06, "1.016", _w_a("W_A 8B 700/s", "8b", 700, 36, 1800), heavy=True),
    "w_a-8b-200": GoalRow(1.08, "1.060", _w_a("W_A 8B 200/s", "8b", 200, 11)),
    "w_a-8b-30": GoalRow(1.27, "1.263", _w_a("W_A 8B 30/s", "8b", 30, 2, 7200)),
    "w_a-8b-200-cv8": GoalRow(
        1.12, "1.11, best fixed fleet 1.062", _w_a("W_A 8B 200/s CV 8", "8b", 200, 12, cv=8.0)
    ),
    "azure-conv-8b-50": GoalRow(1.30, "1.254 with known arrivals", _conversations, replays=True),
    "w_a-70b-78": GoalRow(1.18, "1.175", _w_a("W_A 70B 78/s", "70b", 78, 11)),
    "w_b-70b-22k": GoalRow(1.15, "1.143", _w_b("W_B 70B 11/s + 22,000", "70b", 11, 22_000, 2)),
}
"""By the names of the scenario files with the same content."""
