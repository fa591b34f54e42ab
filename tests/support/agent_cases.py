"""What tests of a real agent share: levels of sim instances, and the end of an agent by SIGKILL."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

from google.protobuf import struct_pb2

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually

StartAgent = Callable[..., Awaitable[AgentProcess]]


def toy_level(
    instance_id: str = "toy-1",
    *,
    arguments: dict[str, object] | None = None,
    state: control_pb2.DesiredState.ValueType = control_pb2.DESIRED_STATE_RUNNING,
    generation: int = 1,
    gpus: tuple[int, ...] = (0,),
    **more: object,
) -> control_pb2.DesiredInstance:
    """A sim instance that should run."""
    engine_args = struct_pb2.Struct()
    engine_args.update({"profile": "toy", **(arguments or {})})
    return control_pb2.DesiredInstance(
        instance_id=instance_id,
        generation=generation,
        state=state,
        spec=cluster_pb2.ModelSpec(
            name="toy", engine="sim", gpus_per_instance=1, max_batch_size=32, engine_args=engine_args
        ),
        gpu_indexes=gpus,
        **{"spec_version": 1, "role": types_pb2.ROLE_MIXED, **more},  # type: ignore[arg-type]
    )


def stopped_level(instance_id: str = "toy-1", **more: object) -> control_pb2.DesiredInstance:
    """The same instance, wanted no more."""
    level: dict[str, object] = {"generation": 9, **more}
    return toy_level(instance_id, state=control_pb2.DESIRED_STATE_STOPPED, **level)  # type: ignore[arg-type]


async def kill_agent(agent: AgentProcess, controller: FakeController) -> None:
    """SIGKILL, and the controller has noticed."""
    agent.signal(signal.SIGKILL)
    await agent.wait()
    await eventually(lambda: not controller.connected, what="the stream of the killed agent ends")
    controller.history.clear()
    controller.reasons.clear()
