"""Where a worker is in its life. Pure; whoever must know of a change is called."""

from __future__ import annotations

from collections.abc import Callable

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import types_pb2

LOADING = types_pb2.INSTANCE_STATE_LOADING
READY = types_pb2.INSTANCE_STATE_READY
DRAINING = types_pb2.INSTANCE_STATE_DRAINING
SLEEPING = types_pb2.INSTANCE_STATE_SLEEPING
FAILED = types_pb2.INSTANCE_STATE_FAILED

_ALLOWED: dict[types_pb2.InstanceState.ValueType, frozenset[types_pb2.InstanceState.ValueType]] = {
    LOADING: frozenset({READY, DRAINING, FAILED}),
    READY: frozenset({DRAINING, SLEEPING, FAILED}),
    SLEEPING: frozenset({READY, DRAINING, FAILED}),
    # Draining and failure end with the process.
    DRAINING: frozenset({FAILED}),
    FAILED: frozenset(),
}


class WorkerState:
    """The state, its reason, and the only way from one to the next."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.value: types_pb2.InstanceState.ValueType = LOADING
        self.reason = ""
        self._on_change = on_change

    @property
    def name(self) -> str:
        """`loading`, `ready`, `draining`, `sleeping` or `failed`."""
        return types_pb2.InstanceState.Name(self.value).removeprefix("INSTANCE_STATE_").lower()

    def can(self, target: types_pb2.InstanceState.ValueType) -> bool:
        """True when `move` would accept the target."""
        return target in _ALLOWED[self.value]

    def move(self, target: types_pb2.InstanceState.ValueType, reason: str = "") -> None:
        """Goes to another state. Raises ChironError (BUSY) when there is no way from here."""
        if not self.can(target):
            wanted = types_pb2.InstanceState.Name(target).removeprefix("INSTANCE_STATE_").lower()
            raise ChironError(Reason.BUSY, f"the worker is {self.describe()} and cannot become {wanted}")
        self.value, self.reason = target, reason
        self._on_change()

    def describe(self) -> str:
        """The state's name, with the reason when there is one."""
        return f"{self.name}: {self.reason}" if self.reason else self.name
