"""An instance as the router sees it: its last load message, and what has been sent there since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chiron.engine.step_time import step_time_table
from chiron.policy.dispatch import InstanceView
from chiron.policy.words import Role

if TYPE_CHECKING:
    from chiron.sim.instance import SimInstance


class Seen:
    """The router's copy of one instance's load; as old as the view delay allows."""

    __slots__ = (
        "accepts",
        "batch_size",
        "entries",
        "instance",
        "instance_id",
        "itl_ms",
        "kv_free_tokens",
        "prefill_tokens_per_s",
        "reserved",
        "role",
        "running_batch",
        "running_interactive",
        "service_s",
        "waiting_batch",
        "waiting_interactive",
        "yields",
    )

    def __init__(self, instance: SimInstance) -> None:
        self.instance = instance
        self.instance_id = instance.identity.instance_id
        profile = instance.engine.profile
        budget = profile.default_step_token_budget
        self.prefill_tokens_per_s = budget / step_time_table(profile.step_time_ms).seconds(budget)
        """Prompt tokens that a step of the default budget takes in, by its time."""
        self.reserved = 0
        """Requests sent there that no load message has told of yet."""
        self.entries: list[tuple[object, ...] | None] = [None, None, None]
        """What an index holds of it, by kind of pick."""
        self.accepts = False
        """The router may send requests there."""
        self.yields = False
        """It has batch work that gives way to interactive requests."""
        self.refresh()

    def refresh(self) -> None:
        """Take a load message: what the worker counts now, the requests sent so far included."""
        instance = self.instance
        self.role: Role = instance.role
        self.batch_size = instance.engine.batch_size
        self.running_interactive = instance.running_interactive
        self.running_batch = instance.running_batch
        self.waiting_interactive = instance.waiting_interactive
        self.waiting_batch = instance.waiting_batch
        self.kv_free_tokens = instance.kv_free_tokens
        self.itl_ms = instance.itl_s * 1e3
        self.service_s = instance.service_s
        self.reserved = 0

    def view(self, queue_allowance: int) -> InstanceView:
        """As policies get it."""
        return InstanceView(
            instance_id=self.instance_id,
            role=self.role,
            batch_size=self.batch_size,
            running=self.running_interactive + self.running_batch,
            waiting_interactive=self.waiting_interactive,
            waiting_batch=self.waiting_batch,
            reserved=self.reserved,
            queue_allowance=queue_allowance,
            kv_free_tokens=self.kv_free_tokens,
            itl_ms=self.itl_ms,
            service_s=self.service_s,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            yielding=self.running_batch if self.role is Role.MIXED else 0,
        )
