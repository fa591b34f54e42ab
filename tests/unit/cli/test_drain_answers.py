"""What `chiron drain instance` answers."""

from __future__ import annotations

import pytest

from chiron.cli import drain_calls
from chiron.v1 import cluster_pb2, types_pb2


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (types_pb2.INSTANCE_STATE_READY, "drains, another instance of chat takes its place"),
        (types_pb2.INSTANCE_STATE_LOADING, "drains, another instance of chat takes its place"),
        (
            types_pb2.INSTANCE_STATE_DRAINING,
            "drains already: it was to go, and this starts no other in its place",
        ),
        (types_pb2.INSTANCE_STATE_STOPPED, "has stopped already, and this starts no other in its place"),
    ],
)
async def test_none_takes_the_place_of_one_that_was_to_go(
    state: types_pb2.InstanceState.ValueType,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def drain(_: object, instance_id: str) -> cluster_pb2.InstanceStatus:
        return cluster_pb2.InstanceStatus(instance_id=instance_id, model="chat", state=state)

    monkeypatch.setattr(drain_calls.ClusterAdmin, "drain_instance", drain)
    assert await drain_calls.drain_instance("127.0.0.1:1", "i") == 0
    assert capsys.readouterr().out == f"i: {said}\n"
