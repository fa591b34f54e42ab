"""What an agent must not forget when it dies: entries of its journal, and what they add up to. Pure.

An entry is a JSON object with one key that names its kind. Each entry sets one part of the state, so that
entries of different origin about one instance do not overwrite each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from google.protobuf import json_format

from chiron.internal.v1 import control_pb2


@dataclass(frozen=True, slots=True)
class TermSeen:
    """The highest term of a controller so far."""

    term: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """The newest level of one instance."""

    level: control_pb2.DesiredInstance
    afresh: bool = False
    """It asks for another worker than before, so that earlier failures count no more."""


@dataclass(frozen=True, slots=True)
class WorkerNoted:
    """One worker of an instance. With pid 0 the agent was about to start it."""

    instance_id: str
    incarnation: int
    spec_version: int
    gpus: tuple[int, ...]
    devices: str
    """What CUDA_VISIBLE_DEVICES holds."""
    boot_id: str
    pid: int = 0
    """Also the number of its session."""
    start_time: int = 0
    """Clock ticks since boot; guards against a reused pid."""
    address: str = ""
    """host:port at which it serves, once it has been ready."""
    asleep: bool = False
    """It sleeps, and others may own its GPUs: on record before they may, and no more before it is woken."""


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """Every process of the instance's worker is gone."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Tally:
    """How often an instance's workers have failed."""

    instance_id: str
    incarnation: int = 0
    """Of the last one."""
    failures: int = 0
    """In a row."""
    failure_limit: int = 0
    last_failure: str = ""
    gave_up: bool = False
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The instance has stopped and nobody lists it any more."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Cordoned:
    """A GPU is out of use until an operator says otherwise."""

    gpu: str
    """Its UUID."""
    reason: str


@dataclass(frozen=True, slots=True)
class Uncordoned:
    """An operator has taken the GPU back into use."""

    gpu: str
    accepted_errors: int = 0
    """Uncorrected memory errors that it had by then: they count no more."""


Entry = TermSeen | Wanted | WorkerNoted | WorkerEnded | Tally | Forgotten | Cordoned | Uncordoned
_PLAIN: Mapping[str, type[Any]] = {
    "term": TermSeen,
    "worker": WorkerNoted,
    "ended": WorkerEnded,
    "tally": Tally,
    "forgotten": Forgotten,
    "cordoned": Cordoned,
    "uncordoned": Uncordoned,
}
_KINDS = {kind: name for name, kind in _PLAIN.items()}


@dataclass(slots=True)
class InstanceMemory:
    """One instance as the journal tells."""

    level: control_pb2.DesiredInstance | None = None
    worker: WorkerNoted | None = None
    tally: Tally | None = None


@dataclass(slots=True)
class Memory:
    """The state after some entries."""

    term: int = 0
    instances: dict[str, InstanceMemory] = field(default_factory=dict)
    cordons: dict[str, str] = field(default_factory=dict)
    """UUID of a GPU → why it is out of use."""
    accepted_errors: dict[str, int] = field(default_factory=dict)
    """UUID of a GPU → uncorrected memory errors that an operator has passed over."""

    def take(self, entry: Entry) -> None:
        """Adds one entry."""
        match entry:
            case TermSeen(term):
                self.term = max(self.term, term)
            case Wanted(level, afresh):
                instance = self._instance(level.instance_id)
                instance.level = level
                if afresh:
                    instance.tally = None
            case WorkerNoted():
                self._instance(entry.instance_id).worker = entry
            case WorkerEnded(instance_id):
                instance = self._instance(instance_id)
                instance.worker = None
                if instance == InstanceMemory():
                    del self.instances[instance_id]
            case Tally():
                self._instance(entry.instance_id).tally = entry
            case Forgotten(instance_id):
                self.instances.pop(instance_id, None)
            case Cordoned(gpu, reason):
                self.cordons[gpu] = reason
            case Uncordoned(gpu, accepted_errors):
                self.cordons.pop(gpu, None)
                self.accepted_errors[gpu] = accepted_errors

    def entries(self) -> list[Entry]:
        """The fewest entries that lead to this state."""
        found: list[Entry] = [TermSeen(self.term)] if self.term else []
        found += [Uncordoned(gpu, count) for gpu, count in self.accepted_errors.items()]
        found += [Cordoned(gpu, reason) for gpu, reason in self.cordons.items()]
        for instance in self.instances.values():
            if instance.level is not None:
                found.append(Wanted(instance.level))
            if instance.worker is not None:
                found.append(instance.worker)
            if instance.tally is not None:
                found.append(instance.tally)
        return found

    def _instance(self, instance_id: str) -> InstanceMemory:
        return self.instances.setdefault(instance_id, InstanceMemory())


def encode(entry: Entry) -> dict[str, Any]:
    """The entry as a JSON object."""
    if isinstance(entry, Wanted):
        level = json_format.MessageToDict(entry.level, preserving_proto_field_name=True)
        return {"wanted": {"level": level, "afresh": entry.afresh}}
    return {_KINDS[type(entry)]: asdict(entry)}


def decode(item: Any) -> Entry:
    """The entry that `encode` made this of. Raises ValueError for anything else."""
    try:
        ((kind, fields),) = item.items()
        if kind == "wanted":
            level = json_format.ParseDict(fields["level"], control_pb2.DesiredInstance())
            return Wanted(level, fields["afresh"])
        if kind == "worker":
            fields = {**fields, "gpus": tuple(fields["gpus"])}
        entry: Entry = _PLAIN[kind](**fields)
    except (AttributeError, ValueError, TypeError, KeyError, json_format.ParseError) as error:
        raise ValueError(f"not an entry of this version ({type(error).__name__}: {error})") from error
    return entry
