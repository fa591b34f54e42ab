"""The pure engine model: no I/O, no clock and no randomness of its own; time is passed in, in seconds.

One model serves two drivers: the worker's `sim` engine steps it by a clock, the simulator by its event
heap.
"""

from chiron.engine.adjusted import adjusted_profile
from chiron.engine.errors import (
    ContextExceededError,
    DuplicateRequestError,
    EngineError,
    EngineStateError,
    InvalidLimitError,
    InvalidRequestError,
    KvCapacityExceededError,
    UnknownProfileError,
    UnknownRequestError,
)
from chiron.engine.lifecycle import EngineState
from chiron.engine.model import DEFAULT_BATCH_SIZE, EngineModel
from chiron.engine.outcome import Admission, DecodeRun, EngineTotals, StepOutcome
from chiron.engine.profiles import Profile, get_profile, profile_names
from chiron.engine.request import EngineRequest, RequestPhase, RequestProgress
from chiron.engine.speculation import Speculation

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "Admission",
    "ContextExceededError",
    "DecodeRun",
    "DuplicateRequestError",
    "EngineError",
    "EngineModel",
    "EngineRequest",
    "EngineState",
    "EngineStateError",
    "EngineTotals",
    "InvalidLimitError",
    "InvalidRequestError",
    "KvCapacityExceededError",
    "Profile",
    "RequestPhase",
    "RequestProgress",
    "Speculation",
    "StepOutcome",
    "UnknownProfileError",
    "UnknownRequestError",
    "adjusted_profile",
    "get_profile",
    "profile_names",
]
