"""Loading, ready, asleep: when an engine may take a step."""

from enum import StrEnum

from chiron.engine.errors import EngineStateError, InvalidLimitError
from chiron.engine.profiles import Profile


class EngineState(StrEnum):
    """What the engine is doing; READY covers running and idle."""

    LOADING = "loading"
    READY = "ready"
    ASLEEP = "asleep"
    WAKING = "waking"


class Lifecycle:
    """The engine's state against the time that the caller passes in, in seconds."""

    __slots__ = ("_profile", "_state", "ready_at", "sleep_level")

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._state = EngineState.READY
        # The instant from which steps may be taken, on the caller's clock; infinite while asleep.
        self.ready_at = float("-inf")
        # 0 while awake.
        self.sleep_level = 0

    def state(self, now: float) -> EngineState:
        """Return the state at this instant."""
        return EngineState.READY if now >= self.ready_at else self._state

    def load(self, now: float) -> float:
        """Begin loading; return the instant at which the engine is ready."""
        self._state = EngineState.LOADING
        self.sleep_level = 0
        self.ready_at = now + self._profile.load_s
        return self.ready_at

    def sleep(self, now: float, level: int) -> None:
        """Fall asleep at level 1 (weights in host memory) or 2 (weights dropped)."""
        if level not in (1, 2):
            raise InvalidLimitError("level", f"must be 1 or 2, got {level}")
        if now < self.ready_at:
            raise EngineStateError(f"cannot sleep while {self._state}")
        self._state = EngineState.ASLEEP
        self.sleep_level = level
        self.ready_at = float("inf")

    def wake(self, now: float) -> float:
        """Begin to wake; return when the engine is ready. EngineStateError unless asleep."""
        if self._state is not EngineState.ASLEEP:
            raise EngineStateError("cannot wake: the engine is not asleep")
        self._state = EngineState.WAKING
        self.ready_at = now + self._profile.wake_s[self.sleep_level - 1]
        self.sleep_level = 0
        return self.ready_at
