"""What NVML tells of one GPU: who uses it, whether it is ill, and what befalls it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

_LOG = logging.getLogger(__name__)
_EVENT_WAIT_MS = 5000
_XIDS_OF_APPLICATIONS = frozenset({13, 31, 43, 45, 68, 109})
"""Raised by what a program does wrong, not by the GPU; Kubernetes' device plugin passes over the same."""


@dataclass(frozen=True, slots=True)
class Residue:
    """Memory of one GPU that somebody has."""

    used_bytes: int
    others_too: bool = False
    """Nobody can tell whose it is: all that is used of the GPU."""
    problem: str = ""
    """Why it is not known."""


def residue(handle: Any, pids: Collection[int]) -> Residue:
    """How much of a GPU's memory these processes have.

    In a container NVML may know them by other numbers, or not how much each one has.
    """
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        theirs = [process.usedGpuMemory for process in processes if process.pid in pids]
        told = None not in theirs and (theirs or not processes)
    except pynvml.NVMLError_NotSupported:
        theirs, told = [], False
    except pynvml.NVMLError as error:
        return Residue(0, problem=f"NVML cannot tell who uses it: {error}")
    if told:
        return Residue(sum(theirs))
    try:
        return Residue(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used), others_too=True)
    except pynvml.NVMLError as error:
        return Residue(0, problem=f"NVML: {error}")


def occupant(handle: Any, besides: Collection[int] = ()) -> str:
    """Who else computes on a GPU; empty when nobody does, or the device keeps no such list."""
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError_NotSupported:
        return ""
    except pynvml.NVMLError as error:
        return f"NVML cannot tell who uses it: {error}"
    return ", ".join(
        f"process {process.pid}{_name_of(process.pid)} computes on it"
        for process in processes
        if process.pid not in besides
    )


def _name_of(pid: int) -> str:
    # A process of another container has a name, though its pid means nothing here.
    try:
        return f" ({pynvml.nvmlSystemGetProcessName(pid)})"
    except pynvml.NVMLError:
        return ""


def illness(handle: Any) -> str:
    """Why a GPU must not be used; empty when NVML has no complaint.

    A lost GPU answers nothing; a failed row remapping means that memory errors can no longer be mended; rows
    and pages that wait to be set aside need a reset of the GPU.
    """
    try:
        pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as error:
        return f"NVML: {error}"
    try:
        _, _, remap_pending, remap_failed = pynvml.nvmlDeviceGetRemappedRows(handle)
    except pynvml.NVMLError_NotSupported:
        remap_pending = remap_failed = 0
    except pynvml.NVMLError as error:
        return f"NVML: {error}"
    if remap_failed:
        return "row remapping has failed: uncorrectable memory errors"
    if remap_pending:
        return "rows of its memory wait to be remapped: reset the GPU"
    return "pages of its memory wait to be retired: reset the GPU" if _pages_pending(handle) else ""


def uncorrected_errors(handle: Any) -> int:
    """Memory errors that ECC could not correct, since the driver was loaded; 0 without ECC."""
    try:
        kind, span = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        return int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, span))
    except pynvml.NVMLError:
        return 0


def watch_events(handles: Sequence[Any], on_event: Callable[[int, str], None]) -> None:
    """Starts a thread that waits for critical events for as long as the process lives.

    Args:
        handles: the GPUs, by index.
        on_event: called from that thread with the index and what has happened.
    """
    try:
        events = pynvml.nvmlEventSetCreate()
        for handle in handles:
            pynvml.nvmlDeviceRegisterEvents(
                handle, pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError, events
            )
    except pynvml.NVMLError as error:
        _LOG.warning("NVML tells of no events (%s); health is looked at now and then only", error)
        return
    threading.Thread(target=_wait, args=(events, on_event), name="GPU events", daemon=True).start()


def _wait(events: Any, on_event: Callable[[int, str], None]) -> None:
    while True:
        try:
            event = pynvml.nvmlEventSetWait_v2(events, _EVENT_WAIT_MS)
            index = int(pynvml.nvmlDeviceGetIndex(event.device))
        except pynvml.NVMLError_Timeout:
            continue
        except pynvml.NVMLError as error:
            _LOG.error("NVML tells of no more events: %s", error)
            return
        if event.eventType == pynvml.nvmlEventTypeDoubleBitEccError:
            on_event(index, "a double-bit memory error")
        elif event.eventData not in _XIDS_OF_APPLICATIONS:
            on_event(index, f"XID {event.eventData}")


def _pages_pending(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle))
    except pynvml.NVMLError:
        return False
