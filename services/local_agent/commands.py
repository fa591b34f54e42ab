"""Carries out one command on a live worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from chiron.internal.v1 import worker_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import steps
from services.local_agent.condition import Have
from services.local_agent.desired import Want
from services.local_agent.worker_link import CommandError, WorkerLink

Change = Callable[[Have, float], Have]
"""What a command has changed at a monotonic time: the next step need not wait for the worker's word."""
_LOG = logging.getLogger(__name__)


async def carry_out(link: WorkerLink, step: steps.Step, want: Want) -> Change:
    """Returns the change. Raises CommandError when the worker refuses, or does something else."""
    match step:
        case steps.SetRole(role):
            await link.set_role(role)
            return lambda have, now: have.told(replace(have.heard, role=role), now)
        case steps.SetLimits(batch_size, step_token_budget):
            now = await link.set_limits(batch_size, step_token_budget)
            wanted = (batch_size or now.batch_size, step_token_budget or now.step_token_budget)
            if wanted != (now.batch_size, now.step_token_budget):
                raise CommandError(f"in force are {now.batch_size} and {now.step_token_budget}")
            return lambda have, at: have.told(replace(have.heard, load=_with_limits(have, now)), at)
        case steps.PutToSleep():
            _LOG.info("%s: falls asleep, drains for at most %g s", want.instance_id, want.drain_timeout_s)
            if aborted := await link.sleep(want.sleep_level, want.drain_timeout_s):
                _LOG.warning("%s: %d requests were cut off", want.instance_id, aborted)
            return lambda have, now: have.fell_asleep(now)
        case steps.WakeUp():
            _LOG.info("%s: wakes", want.instance_id)
            await link.wake()
            ready = types_pb2.INSTANCE_STATE_READY
            return lambda have, now: have.told(replace(have.heard, state=ready), now)
        case _:
            raise RuntimeError(f"{step} is no command for a worker")


def _with_limits(have: Have, now: worker_pb2.SetLimitsResponse) -> cluster_pb2.InstanceLoad:
    load = cluster_pb2.InstanceLoad()
    load.CopyFrom(have.heard.load or load)
    load.batch_size, load.step_token_budget = now.batch_size, now.step_token_budget
    return load
