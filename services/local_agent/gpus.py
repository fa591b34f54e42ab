"""The node's GPUs: found by NVML, or declared on nodes without it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pynvml

from chiron.config import ConfigError
from services.local_agent.nvml import Residue, illness, occupant, residue, uncorrected_errors, watch_events


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU and its health, as fresh as the last look (`gpu_check_interval_s`)."""

    index: int
    uuid: str
    """NVML's UUID, or `declared-N`."""
    name: str
    memory_bytes: int
    healthy: bool = True
    reason: str = ""
    """Why it is not healthy."""
    uncorrected_errors: int = 0
    """Memory errors that ECC could not correct, since the driver was loaded."""


class Inventory(Protocol):
    """Where the agent learns about GPUs."""

    exclusive: bool
    """Whether the GPUs are this host's own, so that no second agent may have them."""

    def read(self) -> Sequence[GpuState]:
        """Looks at every GPU. May block for some milliseconds."""

    def occupants(self, indexes: Sequence[int], besides: Collection[int] = ()) -> Mapping[int, str]:
        """Which of these GPUs are not free, and why: processes compute on them, or none can tell.

        Processes `besides` which one looks may be there. May block for some milliseconds.
        """

    def kept(self, indexes: Sequence[int], pids: Collection[int]) -> Mapping[int, Residue]:
        """How much of each GPU's memory these processes have. May block for some milliseconds."""

    def watch(self, on_event: Callable[[int, str], None]) -> None:
        """Calls back, from a thread of its own, with index and text when a GPU tells of a fault."""

    def visible_devices(self, indexes: Sequence[int]) -> str:
        """What CUDA_VISIBLE_DEVICES must hold for a worker on these GPUs."""

    def indexes(self, devices: str) -> tuple[int, ...]:
        """The GPUs that this value of CUDA_VISIBLE_DEVICES stands for, those that are no more left out."""


class DeclaredGpus:
    """A number of GPUs taken on trust: CPU nodes, simulated engines. Other agents may declare the same."""

    exclusive = False

    def __init__(self, count: int) -> None:
        self._gpus = tuple(GpuState(i, f"declared-{i}", "declared", 0) for i in range(count))

    def read(self) -> Sequence[GpuState]:
        """The declared GPUs, always healthy."""
        return self._gpus

    def occupants(self, indexes: Sequence[int], besides: Collection[int] = ()) -> Mapping[int, str]:
        """None: nobody can look."""
        return {}

    def kept(self, indexes: Sequence[int], pids: Collection[int]) -> Mapping[int, Residue]:
        """Nothing: their worker's word counts."""
        return {index: Residue(0) for index in indexes}

    def watch(self, on_event: Callable[[int, str], None]) -> None:
        """Nothing happens to them."""

    def visible_devices(self, indexes: Sequence[int]) -> str:
        """The indexes themselves."""
        return ",".join(str(index) for index in indexes)

    def indexes(self, devices: str) -> tuple[int, ...]:
        """The numbers."""
        return tuple(sorted(int(name) for name in devices.split(",") if name.isdecimal()))


class NvmlGpus:
    """GPUs that NVML finds."""

    exclusive = True

    def __init__(self) -> None:
        """Loads NVML. Raises ConfigError, naming the way out, without a working driver or any GPU."""
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise ConfigError(
                f"gpus: NVML finds none ({error}); install the NVIDIA driver, or declare a count with gpus=N"
            ) from error
        if count == 0:
            raise ConfigError("gpus: NVML finds no GPUs on this node; declare a count with gpus=N")
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        self._fixed = [_identify(index, handle) for index, handle in enumerate(self._handles)]

    def read(self) -> Sequence[GpuState]:
        """Identity from the start, health from NVML now."""
        found = []
        for fixed, handle in zip(self._fixed, self._handles, strict=True):
            reason = illness(handle)
            errors = uncorrected_errors(handle)
            found.append(replace(fixed, healthy=not reason, reason=reason, uncorrected_errors=errors))
        return found

    def watch(self, on_event: Callable[[int, str], None]) -> None:
        """XID errors that are the GPU's own, and double-bit memory errors, as NVML tells of them."""
        watch_events(self._handles, on_event)

    def occupants(self, indexes: Sequence[int], besides: Collection[int] = ()) -> Mapping[int, str]:
        """By NVML's list of compute processes, which includes those of other containers."""
        # One that is gone since the last start has nobody on it; its health says so.
        found = {index: occupant(self._handles[index], besides) for index in self._present(indexes)}
        return {index: why for index, why in found.items() if why}

    def kept(self, indexes: Sequence[int], pids: Collection[int]) -> Mapping[int, Residue]:
        """By NVML's list of compute processes; where that does not tell, by the whole GPU's figure."""
        return {index: residue(self._handles[index], pids) for index in self._present(indexes)}

    def _present(self, indexes: Sequence[int]) -> list[int]:
        return [index for index in indexes if index < len(self._handles)]

    def visible_devices(self, indexes: Sequence[int]) -> str:
        """UUIDs: CUDA numbers devices in another order than NVML."""
        return ",".join(self._fixed[index].uuid for index in indexes)

    def indexes(self, devices: str) -> tuple[int, ...]:
        """By UUID: an index may have come to mean another GPU."""
        uuids = devices.split(",")
        return tuple(gpu.index for gpu in self._fixed if gpu.uuid in uuids)


def discover(count: int) -> Inventory:
    """The inventory for the config key `gpus`: NVML for -1, else that many. Raises ConfigError."""
    return NvmlGpus() if count < 0 else DeclaredGpus(count)


def _identify(index: int, handle: Any) -> GpuState:
    return GpuState(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
    )
