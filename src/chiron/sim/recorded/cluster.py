"""A cluster as it was while its requests were recorded: snapshots one after the other, and its decisions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from google.protobuf import json_format

from chiron.config import ConfigError
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

_LOADING = (types_pb2.INSTANCE_STATE_PENDING, types_pb2.INSTANCE_STATE_LOADING)
_FIELDS = ("loading", "serving", "draining", "sleeping")


@dataclass(frozen=True, slots=True)
class Moment:
    """The cluster at one time."""

    at: float
    """Wall-clock time, in seconds since 1970."""
    ready: int
    """Instances."""
    loading: int
    """Instances."""
    gpus: int
    """Held, awake or asleep."""
    gpu_seconds: tuple[float, ...]
    """Loading, serving, draining, sleeping, since the controller began to lead."""


@dataclass(frozen=True, slots=True)
class LiveCluster:
    """What `chiron status --watch --json` has printed, and the decisions of that time."""

    first: pb.ClusterSnapshot
    """With which the models and the nodes are described."""
    moments: tuple[Moment, ...]
    """In order of time, of one controller's reign."""
    decisions: tuple[pb.Decision, ...] = ()
    """In order of time."""
    loads: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Model → (wall-clock time at which an instance was placed, seconds until it was ready), in order, of
    those that were placed later than the first snapshot."""
    placed_to_ready_s: Mapping[str, float] = field(default_factory=dict)
    """Instance → the same time, in seconds, where a decision tells it."""
    snapshots: Sequence[pb.ClusterSnapshot] = ()
    """All of them, in order."""

    @property
    def load_s(self) -> Mapping[str, float]:
        """Model → mean of its load times, in seconds."""
        return {model: fmean(took for _, took in times) for model, times in self.loads.items()}

    def at(self, wall: float) -> Moment:
        """The last moment not after `wall`; the first one where there is none."""
        found = self.moments[0]
        for moment in self.moments:
            if moment.at > wall:
                break
            found = moment
        return found

    def gpu_seconds(self, since: float, until: float) -> tuple[float, ...]:
        """Loading, serving, draining and sleeping between two wall-clock times, interpolated."""
        return tuple(end - begin for begin, end in zip(self._sums(since), self._sums(until), strict=True))

    def _sums(self, wall: float) -> tuple[float, ...]:
        before = self.at(wall)
        after = next((moment for moment in self.moments if moment.at > wall), None)
        if after is None or after.at <= before.at or wall <= before.at:
            return before.gpu_seconds
        share = (wall - before.at) / (after.at - before.at)
        return tuple(a + share * (b - a) for a, b in zip(before.gpu_seconds, after.gpu_seconds, strict=True))


def read_cluster(file: Path, decisions: Path | None = None) -> LiveCluster:
    """Reads the snapshots, and the decisions that `chiron explain --json` has printed.

    Raises ConfigError naming the file, and the line that is no snapshot.
    """
    snapshots = [snapshot for snapshot in _snapshots(file) if snapshot.HasField("time")]
    if not snapshots:
        raise ConfigError(f"{file}: no snapshot in it: print them with `chiron status --watch --json`")
    terms = {snapshot.term for snapshot in snapshots}
    if len(terms) > 1:
        # Sums of GPU time begin anew with each reign.
        raise ConfigError(f"{file}: the controller changed meanwhile (terms {sorted(terms)}): cut it in two")
    moments = tuple(sorted(map(_moment, snapshots), key=lambda moment: moment.at))
    told = _decisions(decisions) if decisions is not None else ()
    ordered = tuple(sorted(told, key=lambda one: one.time.ToNanoseconds()))
    told_s = {
        one.instance_id: milestone.after_s
        for one in ordered
        if one.action == "place"
        for milestone in one.outcome.milestones
        if milestone.name == "ready"
    }
    return LiveCluster(
        snapshots[0], moments, ordered, _load_times(snapshots, told_s), told_s, tuple(snapshots)
    )


def _snapshots(file: Path) -> Iterable[pb.ClusterSnapshot]:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            try:
                yield json_format.Parse(line, pb.ClusterSnapshot(), ignore_unknown_fields=True)
            except json_format.ParseError as error:
                raise ConfigError(f"{file}:{number}: no snapshot of a cluster: {error}") from error


def _decisions(file: Path) -> Sequence[pb.Decision]:
    try:
        answer = json_format.Parse(
            "".join(_lines(file)), pb.ListDecisionsResponse(), ignore_unknown_fields=True
        )
    except json_format.ParseError as error:
        raise ConfigError(
            f"{file}: no decisions as `chiron explain --since 1h --json` prints them: {error}"
        ) from error
    return list(answer.decisions)


def _load_times(
    snapshots: Sequence[pb.ClusterSnapshot], told_s: Mapping[str, float]
) -> Mapping[str, Sequence[tuple[float, float]]]:
    """Of the instances that are seen both on their way and ready; as decisions tell it, where they do."""
    placed: dict[str, float] = {}
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number, snapshot in enumerate(snapshots):
        now = snapshot.time.ToNanoseconds() / 1e9
        for one in snapshot.instances:
            # One that the first snapshot shows may have been on its way for long.
            if one.state in _LOADING and number:
                placed.setdefault(one.instance_id, now)
            elif one.state == types_pb2.INSTANCE_STATE_READY and one.instance_id in placed:
                at = placed.pop(one.instance_id)
                measured[one.model].append((at, told_s.get(one.instance_id, now - at)))
    return {model: sorted(times) for model, times in measured.items()}


def _lines(file: Path) -> Sequence[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


def _moment(snapshot: pb.ClusterSnapshot) -> Moment:
    states = Counter(instance.state for instance in snapshot.instances)
    held = {
        (instance.node_id, index)
        for instance in snapshot.instances
        if instance.state not in (types_pb2.INSTANCE_STATE_STOPPED, types_pb2.INSTANCE_STATE_FAILED)
        for index in instance.gpu_indexes
    }
    return Moment(
        at=snapshot.time.ToNanoseconds() / 1e9,
        ready=states[types_pb2.INSTANCE_STATE_READY],
        loading=sum(states[state] for state in _LOADING),
        gpus=len(held),
        gpu_seconds=tuple(getattr(snapshot.gpu_seconds, name) for name in _FIELDS),
    )
