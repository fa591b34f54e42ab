"""What a worker counts for good: answers by class, and preemptions that its engine chose itself."""

from __future__ import annotations

import pytest

from chiron.v1 import cluster_pb2
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import ChoiceDelta, EngineOutput
from services.worker.finished import Finished
from services.worker.meter import Meter
from services.worker.pace import Pace
from services.worker.preemptions import OwnPreemptions

STOP, ABORT = pb.FINISH_REASON_STOP, pb.FINISH_REASON_ABORT


def pace(
    tokens: int, *, prompt: int = 5, reason: pb.FinishReason.ValueType = STOP, queue_s: float = 0.0
) -> Pace:
    """A request that arrived at second 10 and got all its tokens at second 12."""
    made = Pace(Meter(), arrival=10.0, elapsed_ms=999.0, prompt_tokens=prompt)
    delta = ChoiceDelta(0, list(range(tokens)), "", [], finish_reason=reason)
    made.add(EngineOutput([delta], 12.0, queue_s=queue_s))
    return made


def sums(finished: Finished) -> cluster_pb2.InstanceLoad:
    load = cluster_pb2.InstanceLoad()
    finished.fill(load)
    return load


def test_answers_are_summed_by_class() -> None:
    finished = Finished()
    finished.add(pace(3, prompt=7, queue_s=0.5), batch=False)
    finished.add(pace(4, prompt=1), batch=False)
    finished.add(pace(10), batch=True)
    load = sums(finished)
    interactive, batch = load.finished_interactive, load.finished_batch
    assert (interactive.requests, interactive.output_tokens, interactive.prompt_tokens) == (2, 7, 8)
    assert interactive.output_tokens_sq == 9 + 16
    assert interactive.service_ms == pytest.approx(2000 + 2000), "the time in the engine's queue included"
    assert (batch.requests, batch.output_tokens, batch.output_tokens_sq) == (1, 10, 100)


def test_what_the_engine_gave_up_is_no_answer() -> None:
    finished = Finished()
    finished.add(pace(3, reason=ABORT), batch=False)
    assert sums(finished) == sums(Finished())


def test_a_report_is_a_copy() -> None:
    finished = Finished()
    before = sums(finished)
    finished.add(pace(3), batch=True)
    assert before.finished_batch.requests == 0


def test_commanded_preemptions_are_not_the_engines_own() -> None:
    own = OwnPreemptions()
    assert own.total(2) == 2
    own.commanded(3)
    assert own.total(5) == 2
    assert own.total(6) == 3


def test_a_commanded_preemption_that_the_engine_counts_late_is_counted_once() -> None:
    own = OwnPreemptions()
    own.commanded(1)
    assert [own.total(0), own.total(1), own.total(2)] == [0, 0, 1]
