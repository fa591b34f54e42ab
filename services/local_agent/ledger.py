"""Who holds which GPU and which port, and who sleeps there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A worker that sleeps on GPUs that others may own."""

    gpus: tuple[int, ...]
    session: int
    """Of its processes."""
    residual_bytes: int
    """Most memory of each GPU that it may keep."""


class GpuLedger:
    """GPU index → the one instance that holds it, awake. A claim takes all its GPUs or none.

    Loading, waking and draining count as awake. Any number of others may sleep on a GPU.
    """

    def __init__(self) -> None:
        self._holders: dict[int, str] = {}
        self._sleepers: dict[str, Sleeper] = {}

    def claim(self, instance_id: str, gpus: Sequence[int]) -> Mapping[int, str]:
        """Takes all the GPUs, or none where others hold some; returns index → holder of those."""
        held = {
            index: self._holders[index]
            for index in gpus
            if self._holders.get(index, instance_id) != instance_id
        }
        if not held:
            self._holders.update(dict.fromkeys(gpus, instance_id))
            self._sleepers.pop(instance_id, None)
        return held

    def doze(self, instance_id: str, sleeper: Sleeper) -> None:
        """Leaves everything that the instance holds to others: its worker sleeps there."""
        self.release(instance_id)
        self._sleepers[instance_id] = sleeper

    def sleepers(self, gpus: Sequence[int]) -> Mapping[str, Sleeper]:
        """Those who sleep on any of these GPUs."""
        there = set(gpus)
        return {key: one for key, one in self._sleepers.items() if not there.isdisjoint(one.gpus)}

    def release(self, instance_id: str) -> None:
        """Gives back everything that the instance holds, and takes it from among the sleepers."""
        self._holders = {gpu: holder for gpu, holder in self._holders.items() if holder != instance_id}
        self._sleepers.pop(instance_id, None)


class PortPool:
    """Hands out the ports of a range in turn: one that a stranger uses is not tried twice in a row."""

    def __init__(self, ports: range | None) -> None:
        """None: the system chooses, and every take is port 0."""
        self._ports = ports
        self._taken: dict[str, int] = {}
        self._next = 0

    def take(self, instance_id: str) -> int | None:
        """A port that no other worker of this agent has; None when all are taken."""
        if self._ports is None:
            return 0
        self._taken.pop(instance_id, None)
        for offset in range(len(self._ports)):
            port = self._ports[(self._next + offset) % len(self._ports)]
            if port not in self._taken.values():
                self._next = (self._next + offset + 1) % len(self._ports)
                self._taken[instance_id] = port
                return port
        return None

    def release(self, instance_id: str) -> None:
        """Gives the instance's port back."""
        self._taken.pop(instance_id, None)
