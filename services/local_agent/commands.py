"""Carries out one command on a live worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chiron.internal.v1 import worker_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import steps
from services.local_agent.condition import Heard
from services.local_agent.worker_link import CommandError, WorkerLink

Change = Callable[[Heard], Heard]
"""What a command has changed in what the worker tells, so that the next step need not wait until it does."""


async def carry_out(link: WorkerLink, step: steps.Step) -> Change:
    """Returns the change. Raises CommandError when the worker refuses, or does something else."""
    match step:
        case steps.SetRole(role):
            await link.set_role(role)
            return lambda heard: replace(heard, role=role)
        case steps.SetLimits(batch_size, step_token_budget):
            now = await link.set_limits(batch_size, step_token_budget)
            wanted = (batch_size or now.batch_size, step_token_budget or now.step_token_budget)
            if wanted != (now.batch_size, now.step_token_budget):
                raise CommandError(f"in force are {now.batch_size} and {now.step_token_budget}")
            return lambda heard: _with_limits(heard, now)
        case steps.PutToSleep():
            await link.sleep()
            return lambda heard: replace(heard, state=types_pb2.INSTANCE_STATE_SLEEPING)
        case steps.WakeUp():
            await link.wake()
            return lambda heard: replace(heard, state=types_pb2.INSTANCE_STATE_READY)
        case _:
            raise RuntimeError(f"{step} is no command for a worker")


def _with_limits(heard: Heard, now: worker_pb2.SetLimitsResponse) -> Heard:
    load = cluster_pb2.InstanceLoad()
    load.CopyFrom(heard.load or load)
    load.batch_size, load.step_token_budget = now.batch_size, now.step_token_budget
    return replace(heard, load=load)
