"""An agent hands the keys of tickets to its workers, and goes on doing so."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from google.protobuf import struct_pb2

from chiron.auth.keys import KeyRing
from chiron.auth.tickets import sign
from chiron.internal.v1 import auth_pb2, control_pb2, worker_pb2
from chiron.rpc.errors import reason_of
from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2, inference_pb2_grpc, types_pb2
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually
from tests.support.worker_process import read_all, request

_FAR_MS = 1e9
_numbers = iter(range(10**6))


def wanted() -> control_pb2.DesiredInstance:
    arguments = struct_pb2.Struct()
    arguments.update({"profile": "toy", "load_time_s": 0})
    spec = cluster_pb2.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, engine_args=arguments)
    return control_pb2.DesiredInstance(
        instance_id="toy-1",
        generation=1,
        state=control_pb2.DESIRED_STATE_RUNNING,
        spec=spec,
        gpu_indexes=[0],
        spec_version=1,
        role=types_pb2.ROLE_MIXED,
    )


class Node:
    """An agent with one worker, and calls to that worker."""

    def __init__(
        self, controller: FakeController, agent: AgentProcess, status: cluster_pb2.InstanceStatus
    ) -> None:
        self.controller, self.agent, self.status = controller, agent, status

    async def takes(self, ring: KeyRing) -> bool:
        """Whether the worker serves a ticket signed with this ring."""
        name = f"r-{next(_numbers)}"
        ticket = worker_pb2.Ticket(
            request_id=name,
            model="toy",
            instance_id="toy-1",
            incarnation=self.status.incarnation,
            expires_at_ms=_FAR_MS,
            nonce=name.encode(),
        )
        async with open_channel(self.status.address) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                request(request_id=name, ticket=sign(ticket, ring))
            )
            try:
                return bool(await read_all(call))
            except grpc.aio.AioRpcError as error:
                return reason_of(error) not in ("TICKET_KEY_UNKNOWN", "RETRY_ELSEWHERE")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        controller = FakeController()
        await controller.start()
        stack.push_async_callback(controller.stop)
        agent = AgentProcess(tmp_path, controller.port, worker_env="CHIRON_WORKER_REQUIRE_TICKETS=true")
        stack.push_async_callback(agent.end)
        assert await agent.start()
        await controller.until_connected()
        controller.send([wanted()])
        report = await controller.until("toy-1", types_pb2.INSTANCE_STATE_READY)
        yield Node(controller, agent, report)


async def test_keys_reach_running_workers_and_rotations_follow(node: Node) -> None:
    first = KeyRing.draw()
    assert not await node.takes(first)
    node.controller.send_keys(first)
    await eventually(lambda: node.takes(first))
    third = first.rotated().rotated()
    node.controller.send_keys(third)
    await eventually(lambda: node.takes(third))
    assert not await node.takes(first)


async def test_workers_keep_their_keys_without_a_controller_and_a_new_one_is_told_them(node: Node) -> None:
    ring = KeyRing.draw()
    node.controller.send_keys(ring)
    await eventually(lambda: node.takes(ring))
    await node.controller.stop()
    assert await node.takes(ring)
    await node.controller.start(node.controller.port)
    await node.controller.until_connected()
    assert KeyRing.from_message(node.controller.hellos[-1].keys) == ring


async def test_a_worker_that_outlives_its_agent_gets_the_next_one_s_keys(node: Node) -> None:
    ring = KeyRing.draw()
    node.controller.send_keys(ring)
    await eventually(lambda: node.takes(ring))
    node.agent.signal(signal.SIGKILL)
    await node.agent.wait()
    assert await node.takes(ring)
    assert await node.agent.start()
    await node.controller.until_connected()
    third = ring.rotated().rotated()
    node.controller.send_keys(third)
    await eventually(lambda: node.takes(third))
    assert not await node.takes(ring)


async def test_keys_that_cannot_be_used_leave_the_old_ones_in_force(node: Node) -> None:
    ring = KeyRing.draw()
    node.controller.send_keys(ring)
    await eventually(lambda: node.takes(ring))
    node.controller._outbox.put_nowait(
        control_pb2.ConnectAgentResponse(keys=auth_pb2.TicketKeys(signing_key_id=1))
    )
    await eventually(lambda: "cannot be used" in node.agent.log())
    assert await node.takes(ring)
