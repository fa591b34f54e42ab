"""What an operator is told when the address given is not that of a working controller."""

from __future__ import annotations

import pytest

from chiron.cluster import AdminError, ClusterAdmin
from tests.support.fake_inference import Blackhole, FakeRouter, serving


async def test_a_router_in_the_controller_s_place_is_told_apart() -> None:
    router = FakeRouter()
    async with serving(router), ClusterAdmin(router.address) as admin:
        with pytest.raises(AdminError) as caught:
            await admin.snapshot()

    said = str(caught.value)
    assert said.startswith(f"{router.address} does not serve chiron.v1.ClusterService as a controller does")
    assert said.endswith("is it the address of a controller?")


async def test_a_controller_that_never_answers_is_named_with_the_time_it_had() -> None:
    with Blackhole() as silent:
        async with ClusterAdmin(silent.address, timeout_s=0.2) as admin:
            with pytest.raises(AdminError) as caught:
                await admin.list_models()

    assert str(caught.value) == f"cannot reach the controller at {silent.address}: no answer within 0.2 s"
