"""Which GPUs must not be used, and why.

That is what NVML says of them now, and cordons: those last until an operator lifts them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from chiron.v1 import cluster_pb2
from services.local_agent.gpus import GpuState
from services.local_agent.journal import Journal
from services.local_agent.memory import Cordoned, Uncordoned

_LOG = logging.getLogger(__name__)

Model = tuple[str, int]
"""Name and version of the spec."""


class GpuHealth:
    """The GPUs of one node. Running workers are left alone; nothing starts on a GPU that is not healthy."""

    def __init__(
        self,
        gpus: Sequence[GpuState],
        journal: Journal,
        *,
        failed_starts: int,
        on_change: Callable[[], None],
    ) -> None:
        """Begins with the cordons on record.

        Args:
            gpus: the first look at them.
            journal: keeps the cordons.
            failed_starts: so many failed starts in a row cordon a GPU; 0: none ever do.
            on_change: called when what is reported of a GPU has changed.
        """
        self._journal = journal
        self._limit = failed_starts
        self._on_change = on_change
        self._cordons = dict(journal.memory.cordons)
        self._accepted = dict(journal.memory.accepted_errors)
        self._failed: dict[int, list[Model]] = {}
        self._works: set[Model] = set()
        self._gpus: tuple[GpuState, ...] = ()
        self.look(gpus)

    @property
    def indexes(self) -> list[int]:
        """Of all GPUs, whether healthy or not."""
        return [gpu.index for gpu in self._gpus]

    def reports(self) -> list[cluster_pb2.Gpu]:
        """The GPUs for a report."""
        return [
            cluster_pb2.Gpu(
                index=gpu.index,
                uuid=gpu.uuid,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                healthy=not (reason := self._reason(gpu)),
                reason=reason,
                cordoned=gpu.uuid in self._cordons,
            )
            for gpu in self._gpus
        ]

    def obstacle(self, indexes: Iterable[int]) -> str:
        """Why nothing may start on these GPUs; empty when they are there and all healthy."""
        reasons = {gpu.index: self._reason(gpu) for gpu in self._gpus}
        found = []
        for index in sorted(set(indexes)):
            if index not in reasons:
                found.append(f"GPU {index} is not there: this node has {len(reasons)}")
            elif reasons[index]:
                found.append(f"GPU {index} is not healthy: {reasons[index]}")
        return "; ".join(found)

    def look(self, gpus: Sequence[GpuState]) -> None:
        """Takes a newer look; memory errors that ECC could not correct cordon their GPU."""
        before, self._gpus = self._gpus, tuple(gpus)
        for gpu in gpus:
            # The count begins anew with the driver.
            accepted = min(self._accepted.get(gpu.uuid, 0), gpu.uncorrected_errors)
            self._accepted[gpu.uuid] = accepted
            new = gpu.uncorrected_errors - accepted
            if new and gpu.uuid not in self._cordons:
                self._cordon(gpu, f"{new} memory errors that ECC could not correct")
        changed = {gpu for gpu in gpus if not gpu.healthy} - set(before)
        for gpu in changed:
            _LOG.error("GPU %d (%s) is not healthy: %s", gpu.index, gpu.uuid, gpu.reason)
        if before and [(gpu.uuid, gpu.reason) for gpu in before] != [(gpu.uuid, gpu.reason) for gpu in gpus]:
            self._on_change()

    def event(self, index: int, what: str) -> None:
        """A GPU tells of a fault of its own, which cordons it."""
        for gpu in self._gpus:
            if gpu.index == index and gpu.uuid not in self._cordons:
                self._cordon(gpu, what)

    def start_failed(self, indexes: Iterable[int], model: Model, reason: str) -> None:
        """A worker has ended before it was ready. Too many in a row cordon its GPUs, unless one model is to
        blame: one that has never worked on this node, while no other has failed there."""
        for gpu in [gpu for gpu in self._gpus if gpu.index in set(indexes)]:
            failed = self._failed.setdefault(gpu.index, [])
            failed.append(model)
            blameless = len(set(failed)) > 1 or model in self._works
            if self._limit and len(failed) >= self._limit and blameless and gpu.uuid not in self._cordons:
                models = ", ".join(sorted({name for name, _ in failed}))
                self._cordon(gpu, f"{len(failed)} starts in a row failed on it ({models}); last: {reason}")
                failed.clear()

    def start_succeeded(self, indexes: Iterable[int], model: Model) -> None:
        """A worker on these GPUs is ready."""
        self._works.add(model)
        for index in indexes:
            self._failed.pop(index, None)

    async def order(self, uuid: str, *, cordoned: bool, reason: str) -> None:
        """An operator sets or lifts a cordon. Raises JournalError when it cannot be put on record."""
        gpu = next((gpu for gpu in self._gpus if gpu.uuid == uuid), None)
        if gpu is None or cordoned == (uuid in self._cordons):
            return
        if cordoned:
            await self._journal.write(Cordoned(uuid, reason))
            self._cordons[uuid] = reason
        else:
            await self._journal.write(Uncordoned(uuid, gpu.uncorrected_errors))
            self._accepted[uuid] = gpu.uncorrected_errors
            self._cordons.pop(uuid, None)
            self._failed.pop(gpu.index, None)
        _LOG.warning(
            "GPU %d (%s) is %s by an operator", gpu.index, uuid, "cordoned" if cordoned else "in use again"
        )
        self._on_change()

    def _cordon(self, gpu: GpuState, reason: str) -> None:
        _LOG.error("GPU %d (%s) is cordoned: %s", gpu.index, gpu.uuid, reason)
        self._cordons[gpu.uuid] = reason
        self._journal.note(Cordoned(gpu.uuid, reason))
        self._on_change()

    def _reason(self, gpu: GpuState) -> str:
        cordon = self._cordons.get(gpu.uuid)
        return "; ".join(filter(None, [gpu.reason, cordon and f"cordoned: {cordon}"]))
