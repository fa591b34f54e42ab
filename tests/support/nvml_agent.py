"""A local agent on GPUs that exist in a JSON file only: NVML's Python functions, replaced.

    CHIRON_TEST_NVML=FILE python -m tests.support.nvml_agent [--set key=value]...

The file holds a list of GPUs: `uuid`, `processes` (pids), `memory` (of each in bytes, by pid as text), `used`
(bytes), `ecc` (uncorrected errors), `lost`, `remap_failed`, `pages_pending`, and `xids` (told once each).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

FILE = Path(os.environ["CHIRON_TEST_NVML"])


def gpu(handle: int) -> dict[str, Any]:
    return dict(json.loads(FILE.read_text())[handle])


def memory_info(handle: int) -> SimpleNamespace:
    if gpu(handle).get("lost"):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    return SimpleNamespace(total=80 << 30, used=gpu(handle).get("used", 0))


def processes(handle: int) -> list[SimpleNamespace]:
    memory = gpu(handle).get("memory", {})
    return [
        SimpleNamespace(pid=pid, usedGpuMemory=memory.get(str(pid)))
        for pid in gpu(handle).get("processes", [])
    ]


def wait_for_event(events: dict[int, int], timeout_ms: int) -> SimpleNamespace:
    deadline = time.monotonic() + timeout_ms / 1000
    while time.monotonic() < deadline:
        for handle in range(len(json.loads(FILE.read_text()))):
            xids = gpu(handle).get("xids", [])
            if len(xids) > (told := events.setdefault(handle, 0)):
                events[handle] += 1
                kind = pynvml.nvmlEventTypeXidCriticalError
                return SimpleNamespace(device=handle, eventType=kind, eventData=xids[told])
        time.sleep(0.02)
    raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)


def unknown_name(pid: int) -> str:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)


REPLACED: dict[str, Any] = {
    "nvmlInit": lambda: None,
    "nvmlDeviceGetCount": lambda: len(json.loads(FILE.read_text())),
    "nvmlDeviceGetHandleByIndex": lambda index: index,
    "nvmlDeviceGetIndex": lambda handle: handle,
    "nvmlDeviceGetUUID": lambda handle: gpu(handle)["uuid"],
    "nvmlDeviceGetName": lambda handle: "H100",
    "nvmlDeviceGetMemoryInfo": memory_info,
    "nvmlDeviceGetRemappedRows": lambda handle: (0, 0, 0, int(gpu(handle).get("remap_failed", False))),
    "nvmlDeviceGetRetiredPagesPendingStatus": lambda handle: int(gpu(handle).get("pages_pending", False)),
    "nvmlDeviceGetTotalEccErrors": lambda handle, kind, span: gpu(handle).get("ecc", 0),
    "nvmlDeviceGetComputeRunningProcesses": processes,
    "nvmlSystemGetProcessName": unknown_name,
    "nvmlEventSetCreate": dict,
    "nvmlDeviceRegisterEvents": lambda handle, kinds, events: None,
    "nvmlEventSetWait_v2": wait_for_event,
}


def main() -> None:
    for name, function in REPLACED.items():
        assert hasattr(pynvml, name), name
        setattr(pynvml, name, function)
    from services.local_agent.__main__ import AgentConfig, run_service, serve

    sys.exit(run_service("agent", AgentConfig, serve))


if __name__ == "__main__":
    main()
