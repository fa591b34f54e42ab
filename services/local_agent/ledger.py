"""Who holds which GPU and which port. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class GpuLedger:
    """GPU index → the one instance that holds it. A claim takes all its GPUs or none."""

    def __init__(self) -> None:
        self._holders: dict[int, str] = {}

    def claim(self, instance_id: str, gpus: Sequence[int]) -> Mapping[int, str]:
        """Takes all the GPUs, or none where others hold some; returns index → holder of those."""
        held = {
            index: self._holders[index]
            for index in gpus
            if self._holders.get(index, instance_id) != instance_id
        }
        if not held:
            self._holders.update(dict.fromkeys(gpus, instance_id))
        return held

    def release(self, instance_id: str) -> None:
        """Gives back everything that the instance holds."""
        self._holders = {gpu: holder for gpu, holder in self._holders.items() if holder != instance_id}


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
