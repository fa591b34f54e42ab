"""What an operator's word about one instance's limits writes, and why it may be refused."""

from __future__ import annotations

import pytest

from chiron.rpc.errors import ChironError, Reason
from chiron.store import Change, InstanceRecord, Snapshot
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from services.global_controller.fleet import stopped_copy
from services.global_controller.instance_limits import set_instance_limits
from services.global_controller.levels import desired_instance
from services.global_controller.views import instance_status

SPEC = pb.ModelSpec(name="m", engine="sim", max_batch_size=64)
RECORD = InstanceRecord(
    "m-1", "m", "node", (0,), types_pb2.ROLE_MIXED, SPEC.SerializeToString(), spec_version=1, generation=4
)
REPORTED = pb.InstanceStatus(
    instance_id="m-1",
    load=pb.InstanceLoad(batch_size=30, step_token_budget=512),
    local=pb.LocalControl(autoscaler="model", max_batch_size=60, max_step_token_budget=2048),
)


def holding(record: InstanceRecord) -> Snapshot:
    return Snapshot().after(Change(1, (record,)))


def ask(
    record: InstanceRecord = RECORD, reported: pb.InstanceStatus | None = REPORTED, **limits: int
) -> tuple[InstanceRecord, str, dict[str, float]] | None:
    request = pb.SetInstanceLimitsRequest(instance_id="m-1", **limits)
    draft = set_instance_limits(holding(record), request, reported)
    if draft is None:
        return None
    (put,), (act,) = draft.puts, draft.acts
    assert isinstance(put, InstanceRecord)
    assert (act.action, act.model, act.instance_id, act.node_id) == ("set_limits", "m", "m-1", "node")
    return put, act.reason, dict(act.numbers)


def test_what_is_named_is_set_and_the_rest_stays() -> None:
    made = ask(batch_size=8)
    assert made is not None
    record, reason, numbers = made
    assert (record.batch_size, record.step_token_budget, record.generation) == (8, 0, 5)
    assert reason == "an operator asked for batch size 8 in place of the autoscaler's 30"
    assert (numbers["batch_size"], numbers["batch_size_before"], numbers["batch_size_in_force"]) == (8, 0, 30)
    more = ask(record, step_token_budget=128, batch_size=9)
    assert more is not None
    assert (more[0].batch_size, more[0].step_token_budget, more[0].generation) == (9, 128, 6)
    assert more[1].endswith(
        "batch size 9 instead of 8 and step-token budget 128 in place of the autoscaler's 512"
    )


def test_zero_gives_a_limit_back() -> None:
    made = ask(batch_size=8, step_token_budget=128)
    assert made is not None
    back = ask(made[0], batch_size=0)
    assert back is not None
    assert (back[0].batch_size, back[0].step_token_budget) == (0, 128)
    assert back[1] == "an operator asked for the batch size back to the local autoscaler"


def test_what_is_set_already_writes_nothing() -> None:
    made = ask(batch_size=8)
    assert made is not None
    assert ask(made[0], batch_size=8) is None
    assert ask(batch_size=0) is None


@pytest.mark.parametrize(
    ("reported", "limits", "text"),
    [
        (REPORTED, {"batch_size": 61}, "batch_size: must be at most 60, the ceiling of m-1, not 61"),
        (
            REPORTED,
            {"step_token_budget": 2049},
            "step_token_budget: must be at most 2048, the ceiling of m-1",
        ),
        (None, {"batch_size": 65}, "batch_size: must be at most 64"),
        (REPORTED, {}, "batch_size: this or step_token_budget is required; 0 gives one back"),
    ],
)
def test_what_no_engine_could_do_is_refused_naming_the_ceiling(
    reported: pb.InstanceStatus | None, limits: dict[str, int], text: str
) -> None:
    with pytest.raises(ChironError) as caught:
        ask(reported=reported, **limits)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert text in str(caught.value)


def test_an_unreported_budget_has_no_ceiling_yet() -> None:
    assert ask(reported=None, step_token_budget=1_000_000) is not None


def test_an_instance_must_be_there_and_must_stay() -> None:
    request = pb.SetInstanceLimitsRequest(instance_id="m-2", batch_size=1)
    with pytest.raises(ChironError, match=r"no instance 'm-2'; there are: m-1"):
        set_instance_limits(holding(RECORD), request, None)
    with pytest.raises(ChironError, match=r"m-1 is being stopped"):
        ask(stopped_copy(RECORD), batch_size=1)


def test_the_agent_is_told_and_operators_see_it_at_once() -> None:
    made = ask(batch_size=8)
    assert made is not None
    level = desired_instance(made[0], SPEC)
    assert (level.batch_size, level.step_token_budget) == (8, 0)
    shown = instance_status(made[0], REPORTED)
    assert (shown.local.set_batch_size, shown.local.autoscaler) == (8, "model")
    assert instance_status(made[0]).local.set_batch_size == 8
    assert not instance_status(RECORD).HasField("local")
