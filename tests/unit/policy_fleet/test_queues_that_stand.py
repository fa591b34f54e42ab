"""A model without a TTFT SLO: what waits for longer than a load takes calls for capacity."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import FleetDecision, Start
from chiron.policy.fleet import Chiron
from chiron.policy.snapshots import NEVER_S, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

LOAD_S = 20.0


class Line:
    """Instances of 50 slots that end 50 requests of 100 tokens a second, and requests that wait for them."""

    def __init__(self, ttft_slo_s: float = NEVER_S) -> None:
        self._chiron = Chiron()
        self._ttft_slo_s = ttft_slo_s
        self.now_s = 0.0
        self.found: FleetDecision | None = None

    def tick(self, queued: int, running: int = 50, *, ready: int = 1, loading: int = 0) -> FleetDecision:
        self.now_s += 1
        busy = {"running_interactive": running, "tokens_per_s": 100.0 * running}
        instances = [
            FleetInstance(f"r{n}", "n", Role.MIXED, Phase.READY, 50, 50, **busy) for n in range(ready)
        ]  # type: ignore[arg-type]
        instances += [
            FleetInstance(f"l{n}", "n", Role.MIXED, Phase.LOADING, 50, 50, ready_in_s=LOAD_S)
            for n in range(loading)
        ]
        ended = running * ready
        traffic = Traffic(
            1.0,
            arrived_interactive=ended,
            queued_interactive=queued,
            finished_interactive=ended,
            finished_output_tokens=100 * ended,
            finished_output_tokens_sq=10_000.0 * ended,
        )
        model = ModelFleet(
            "m", 1, 1, 0, self._ttft_slo_s, NEVER_S, NEVER_S, tuple(instances), traffic, load_time_s=LOAD_S
        )
        self.found = self._chiron.decide(FleetSnapshot(self.now_s, (model,), {"n": 8}))
        return self.found

    @property
    def reason(self) -> str:
        assert self.found is not None
        return self.found.assessments[0].reason


def settled(ttft_slo_s: float = NEVER_S) -> Line:
    """After half a minute in which nobody waited."""
    line = Line(ttft_slo_s)
    for _ in range(30):
        assert not line.tick(0, running=30).actions
    return line


def test_a_queue_that_stands_for_a_load_time_starts_one_instance() -> None:
    line = settled()
    for _ in range(int(LOAD_S) - 1):
        assert not line.tick(200).actions, "a new instance would come too late for those who wait"
        assert "200 requests wait" in line.reason
        assert "cool-down" not in line.reason
        assert "one instance less" not in line.reason
    [start] = line.tick(200).actions
    assert isinstance(start, Start)
    assert start.count == 1
    assert "have waited in line for 20 s, longer than an instance takes to load" in start.reason
    assert start.numbers["waited_s"] == LOAD_S
    assert "200 requests are in line without a slot" in start.alternatives[-1].why_not
    # What loads is the answer to this queue; one more comes only if it has not helped for a load time.
    for _ in range(int(LOAD_S)):
        assert not line.tick(200, loading=1).actions
    for _ in range(int(LOAD_S) - 1):
        assert not line.tick(150, ready=2).actions
    [more] = line.tick(150, ready=2).actions
    assert isinstance(more, Start)
    assert more.count == 1


def test_a_queue_that_has_gone_in_between_starts_nothing() -> None:
    line = settled()
    for _ in range(3):
        for _ in range(int(LOAD_S) - 5):
            assert not line.tick(200).actions
        assert not line.tick(0).actions


@pytest.mark.parametrize("ttft_slo_s", [4.0, 10.0])
def test_a_ttft_slo_bounds_the_queue_as_before(ttft_slo_s: float) -> None:
    line = settled(ttft_slo_s)
    # 25 requests a second for half of the SLO's time.
    assert not line.tick(int(50 * ttft_slo_s / 2 * 0.5)).actions
    assert "wait" in line.reason
    [start] = line.tick(int(50 * ttft_slo_s)).actions
    assert "demand exceeds the target share" in start.reason
