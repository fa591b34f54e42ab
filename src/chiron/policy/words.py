"""The words that every policy uses."""

from __future__ import annotations

from enum import Enum, IntEnum


class Role(IntEnum):
    """Which request classes an instance takes; the numbers are those of the API's Role."""

    INTERACTIVE = 1
    MIXED = 2
    BATCH = 3


class RequestClass(IntEnum):
    """Which promise a request carries; the numbers are those of the API's RequestClass."""

    INTERACTIVE = 1
    BATCH = 2


class Phase(Enum):
    """Where an instance is in its life, as far as capacity is concerned."""

    LOADING = "loading"
    """Placed, starting or waking; supply from `ready_in_s` on."""
    READY = "ready"
    DRAINING = "draining"
    """Finishes what it has; no supply for new requests."""
    SLEEPING = "sleeping"
    """Weights off the GPU; wakes in seconds."""
