"""What a model's requests need, and which slots there are for them besides one instance's. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from chiron.internal.v1 import control_pb2
from chiron.store import InstanceRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.decisions.follower import Around
from services.global_controller.fleet import is_ready, is_stopping

_TAKES = {
    types_pb2.ROLE_INTERACTIVE: ("interactive",),
    types_pb2.ROLE_MIXED: ("interactive", "batch"),
    types_pb2.ROLE_BATCH: ("batch",),
}


class Surroundings:
    """One look at all models; each is summed up once, when it is asked for."""

    def __init__(
        self,
        records: Iterable[InstanceRecord],
        statuses: Mapping[str, cluster_pb2.InstanceStatus],
        reports: Iterable[control_pb2.RouterReport],
        load_time_s: Callable[[str], float],
    ) -> None:
        """Looks at these; `load_time_s` tells a model's."""
        self._records = records
        self._statuses = statuses
        self._reports = tuple(reports)
        self._load_time_s = load_time_s
        self._models: dict[str, tuple[Counter[str], Counter[types_pb2.Role.ValueType], float]] = {}

    def of(self, record: InstanceRecord) -> Around:
        """What surrounds one instance: requests that it could take, and the others' slots for them.

        An item of a durable queue that nobody works on counts for batch instances alone: it waits for spare
        capacity anywhere else.
        """
        if record.model not in self._models:
            self._models[record.model] = self._sum(record.model)
        requests, slots, load_time_s = self._models[record.model]
        classes = _TAKES.get(record.role, ("interactive", "batch"))
        wanted = sum(requests[one] for one in classes)
        if record.role == types_pb2.ROLE_BATCH:
            wanted += requests["items"]
        others = sum(count for role, count in slots.items() if set(_TAKES.get(role, classes)) & set(classes))
        own = self._slots(record) if is_ready(record) and not is_stopping(record) else 0
        return Around(float(wanted), float(max(0, others - own)), load_time_s)

    def _sum(self, model: str) -> tuple[Counter[str], Counter[types_pb2.Role.ValueType], float]:
        requests: Counter[str] = Counter()
        slots: Counter[types_pb2.Role.ValueType] = Counter()
        for record in self._records:
            if record.model != model:
                continue
            status = self._statuses.get(record.instance_id)
            if status is not None:
                load = status.load
                requests["interactive"] += load.running.interactive + load.waiting.interactive
                requests["batch"] += load.running.batch + load.waiting.batch
            if is_ready(record) and not is_stopping(record):
                slots[record.role] += self._slots(record)
        queues: dict[str, int] = {}
        for report in self._reports:
            for demand in report.demand:
                if demand.model == model:
                    requests["interactive"] += demand.queued.interactive
                    requests["batch"] += demand.queued.batch
            for queued in report.batch_queue.models:
                if queued.model == model:
                    queues[report.batch_queue.queue_id] = sum(group.requests for group in queued.groups)
        requests["items"] = sum(queues.values())
        return requests, slots, self._load_time_s(model)

    def _slots(self, record: InstanceRecord) -> int:
        status = self._statuses.get(record.instance_id)
        return status.load.batch_size if status is not None else 0
