"""What `chiron instances sleep` and `wake` say of who decides from then on."""

from __future__ import annotations

import pytest

from chiron.cli.instances import afterwards
from chiron.v1 import cluster_pb2 as pb


@pytest.mark.parametrize(("sleeping", "said"), [(True, "wake it again"), (False, "back to sleep")])
def test_an_autoscaler_may_decide_otherwise(sleeping: bool, said: str) -> None:
    model = pb.ModelStatus(spec=pb.ModelSpec(name="chat"), autoscale=pb.AutoscaleStatus())
    assert said in afterwards(model, sleeping=sleeping)


def test_a_number_that_is_pinned_is_named_with_the_way_to_give_it_back() -> None:
    scaled = pb.AutoscaleStatus(pinned_instances=1)
    model = pb.ModelStatus(spec=pb.ModelSpec(name="chat"), autoscale=scaled)
    said = afterwards(model, sleeping=True)
    assert "chat stays at 1" in said
    assert "`chiron models scale chat --auto`" in said


def test_without_an_autoscaler_there_is_nothing_to_say() -> None:
    assert afterwards(pb.ModelStatus(spec=pb.ModelSpec(name="chat")), sleeping=True) == ""
