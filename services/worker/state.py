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
    SLEEPING: frozenset({READY, LOADING, DRAINING, FAILED}),
    # Draining and failure end with the process.
    DRAINING: frozenset({FAILED}),
    FAILED: frozenset(),
}


class WorkerState:
    """The state, its reason, and the only way from one to the next."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.reason = ""
        self._value: types_pb2.InstanceState.ValueType = LOADING
        self._retiring = False
        self._on_change = on_change

    @property
    def value(self) -> types_pb2.InstanceState.ValueType:
        """Where it is; DRAINING also while it is ready and about to sleep, which alone can be taken back."""
        return DRAINING if self._retiring else self._value

    @property
    def name(self) -> str:
        """`loading`, `ready`, `draining`, `sleeping` or `failed`."""
        return types_pb2.InstanceState.Name(self.value).removeprefix("INSTANCE_STATE_").lower()

    def can(self, target: types_pb2.InstanceState.ValueType) -> bool:
        """True when `move` would accept the target."""
        return target in _ALLOWED[self._value]

    def move(self, target: types_pb2.InstanceState.ValueType, reason: str = "") -> None:
        """Goes to another state. Raises ChironError (BUSY) when there is no way from here."""
        if not self.can(target):
            wanted = types_pb2.InstanceState.Name(target).removeprefix("INSTANCE_STATE_").lower()
            raise ChironError(Reason.BUSY, f"the worker is {self.describe()} and cannot become {wanted}")
        self._value, self.reason, self._retiring = target, reason, False
        self._on_change()

    def retire_to_sleep(self, retiring: bool) -> None:
        """A ready worker takes nothing new before it sleeps, or serves on because it is not to sleep."""
        if self._value == READY and retiring is not self._retiring:
            self._retiring = retiring
            self._on_change()

    def describe(self) -> str:
        """The state's name, with the reason when there is one."""
        return f"{self.name}: {self.reason}" if self.reason else self.name
