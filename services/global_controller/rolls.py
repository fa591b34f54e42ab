"""How the replacement of a model's instances by those of another version goes on, stops and ends. Pure.

A step is one new instance. The next one waits until the new instance has proven itself: it has stayed ready
for the hold time and its requests do not fail. One that fails instead stalls the roll, and the version that
served before goes on; nothing of it stops any more.
"""

from __future__ import annotations

import dataclasses

from chiron.store import InstanceRecord, ModelRecord, Roll, SpecVersion
from chiron.v1 import cluster_pb2
from services.global_controller.fleet import Fleet, Work, is_failed, is_ready
from services.global_controller.versions import find_version, pointed_at
from services.global_controller.view import Act, Liveness

MOST_CRASHES = 1
"""Crashes of one new instance that may be chance; one more stalls the roll."""
MOST_FAILED_SHARE = 0.01
"""Share of a new instance's requests that may fail; a single failure is never enough to stall the roll."""


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """What a model is short of, and what its roll adds to that."""

    short: int
    """Instances that are wanted and not there."""
    new: int
    """Instances of the present version to place."""
    old: int
    """Instances of the version before to place."""
    earlier: SpecVersion | None
    """The version before."""
    held: tuple[InstanceRecord, ...] = ()
    """What is there of that to which these are to be added: it says which roles are missing."""


def start_roll(
    model: ModelRecord, version: SpecVersion, *, rollback_on_failure: bool, reason: str = ""
) -> Roll:
    """The roll that leads from a model's present version to another one.

    A roll that has not been completed is superseded: the version from which it came is still the one that
    has proven itself, or the earlier one to which it led back.
    """
    before = model.roll
    proven = earlier_version(model) if before.active else None
    if proven is None or proven.rollout_version == version.rollout_version:
        proven = model.version
    return Roll(
        number=before.number + 1,
        state=cluster_pb2.ROLL_STATE_ROLLING,
        from_version=proven.spec_version,
        to_version=version.spec_version,
        rollback_on_failure=rollback_on_failure,
        reason=reason,
    )


def follow_roll(work: Work, model: ModelRecord) -> None:
    """Stalls a roll whose new version fails, or turns it back where that was asked for.

    Whatever of the new version does not do is then stopped; what has failed altogether stays to be seen.
    """
    fleet, roll = work.fleet(model), model.roll
    troubles = _troubles(work, model, fleet) if roll.active else []
    if not troubles:
        return
    earlier = earlier_version(model)
    if roll.rolling:
        why = troubles[0][1]
        if roll.rollback_on_failure and earlier is not None:
            _turn_back(work, model, fleet, earlier, why)
        else:
            _stall(work, model, fleet, why)
    for culprit, why in troubles:
        if not is_failed(culprit) and earlier is not None:
            work.stop(culprit, why, roll_numbers(model, fleet))


def finish_roll(work: Work, model: ModelRecord) -> None:
    """Notes that a roll is over: as many as are wanted of the new version have proven themselves.

    Old ones have been stopped by then.
    """
    fleet = work.fleet(model)
    if not model.roll.rolling or len(fleet.fresh) < model.desired_instances:
        return
    if all(is_proven(work, model, record) for record in fleet.fresh):
        done = dataclasses.replace(model.roll, state=cluster_pb2.ROLL_STATE_DONE)
        reason = f"{len(fleet.fresh)} instances run spec version {model.spec_version}, none another one"
        act = Act("roll", reason, model.name, numbers=roll_numbers(model, fleet))
        work.put_model(dataclasses.replace(model, roll=done), act)


def stall_reason(work: Work, model: ModelRecord, fleet: Fleet) -> str:
    """Why no further instance of an old version may be replaced; empty: one may."""
    if model.roll.active:
        return model.roll.reason if model.roll.stalled else ""
    # Nobody has begun this roll: its old instances were found running.
    troubles = _troubles(work, model, fleet) if fleet.outdated else []
    return troubles[0][1] if troubles else ""


def is_proven(work: Work, model: ModelRecord, record: InstanceRecord) -> bool:
    """Whether an instance has stayed ready for the hold time without failing its requests."""
    if not is_ready(record) or work.liveness(record.node_id) is not Liveness.LIVE:
        return False
    health = work.health(record)
    left_s = hold_s(work, model) - health.ready_s
    if left_s > 0:
        work.look_again(left_s)
    return left_s <= 0 and not is_doubtful(work, model, record)


def is_doubtful(work: Work, model: ModelRecord, record: InstanceRecord) -> bool:
    """Whether an instance that the roll has placed has failed too large a share of its requests so far."""
    health = work.health(record)
    ended = health.served + health.failed
    return record.roll == model.roll.number and health.failed > MOST_FAILED_SHARE * ended


def hold_s(work: Work, model: ModelRecord) -> float:
    """Time for which a new instance must stay ready, in seconds."""
    settings = model.parsed_spec().roll
    return settings.hold_s if settings.HasField("hold_s") else work.view.hold_s


def is_trusted(model: ModelRecord, record: InstanceRecord) -> bool:
    """Whether an old instance is of the version on which the roll falls back; True where none is known."""
    before = earlier_version(model)
    return before is None or record.spec_version == before.rollout_version


def is_mending(model: ModelRecord, record: InstanceRecord) -> bool:
    """Whether an instance of the version before was placed during the roll, where one was missing."""
    return model.roll.active and record.roll == model.roll.number


def earlier_version(model: ModelRecord) -> SpecVersion | None:
    """The version that serves on when the roll fails; None: there is none, or the roll leads back to one that
    has served before."""
    earlier = find_version(model, model.roll.from_version) if model.roll.active else None
    leads_back = earlier is not None and model.rollout_version < earlier.rollout_version
    return None if leads_back else earlier


def missing(work: Work, model: ModelRecord, fleet: Fleet) -> Missing:
    """How many instances are to be placed, and of which version.

    One is the roll's next step; whatever else is missing is of the new version once that has proven itself,
    before that and once it has failed of the one before.
    """
    earlier, stalled = earlier_version(model), bool(stall_reason(work, model, fleet))
    fresh = fleet.fresh
    if stalled and earlier is not None:
        fresh = [record for record in fresh if not is_failed(record)]
    held = [*fresh, *fleet.outdated]
    if work.view.settling:
        # A leaving agent has said itself that its instances end; that is no matter of who is yet to join.
        staying = [record for record in fleet.draining if not work.nodes[record.node_id].leaving]
        held += [*staying, *fleet.lost, *fleet.sick]
    short = max(0, model.desired_instances - len(held))
    # The next step of a roll has a role that the new version lacks.
    there = tuple(held if short else fresh)
    proven = [is_proven(work, model, record) for record in fresh]
    if earlier is None or (not stalled and (any(proven) or not fleet.outdated)):
        step = not short and not stalled and all(proven) and _has_room_for_a_step(work, model, fleet)
        return Missing(short, short + step, 0, earlier, there)
    if stalled:
        return Missing(short, 0, short, earlier, there)
    if short:
        step = not fresh
        return Missing(short, int(step), short - step, earlier, there)
    step = not fresh and _has_room_for_a_step(work, model, fleet)
    return Missing(0, int(step), 0, earlier, there)


def roll_numbers(model: ModelRecord, fleet: Fleet) -> dict[str, float]:
    """The figures of a roll, for the log of decisions."""
    return {
        "from_version": model.roll.from_version,
        "to_version": model.roll.to_version,
        "replaced": sum(map(is_ready, fleet.fresh)),
        "remaining": len(fleet.outdated),
        "desired": model.desired_instances,
    }


def _has_room_for_a_step(work: Work, model: ModelRecord, fleet: Fleet) -> bool:
    """Whether one instance may be added to those wanted: not before the one replaced last has gone."""
    return bool(
        not work.view.settling
        and fleet.outdated
        and not fleet.stopping
        and len(fleet.fresh) + len(fleet.outdated) <= model.desired_instances
    )


def _troubles(work: Work, model: ModelRecord, fleet: Fleet) -> list[tuple[InstanceRecord, str]]:
    """The instances of the new version that do not do, and why."""
    found = []
    for record in fleet.fresh:
        who, seen, health = f"{record.instance_id} on {record.node_id}", record.observed, work.health(record)
        if is_failed(record):
            found.append((record, f"{who} failed: {seen.reason}"))
        elif record.roll != model.roll.number:
            # It ran before this roll began: its past is none of it.
            continue
        elif seen.restarts > MOST_CRASHES:
            found.append((record, f"{who} crashed {seen.restarts} times: {seen.reason}"))
        elif health.failed > 1 and is_doubtful(work, model, record):
            requests = health.served + health.failed
            found.append((record, f"{who} failed {health.failed} of its {requests} requests"))
    return found


def _stall(work: Work, model: ModelRecord, fleet: Fleet, why: str) -> None:
    stalled = dataclasses.replace(model.roll, state=cluster_pb2.ROLL_STATE_STALLED, reason=why)
    reason = f"stalled, the earlier version goes on: {why}"
    work.put_model(
        dataclasses.replace(model, roll=stalled),
        Act("roll", reason, model.name, numbers=roll_numbers(model, fleet)),
    )


def _turn_back(work: Work, model: ModelRecord, fleet: Fleet, earlier: SpecVersion, why: str) -> None:
    told = f"spec version {model.spec_version} was rolled back: {why}"
    back = start_roll(model, earlier, rollback_on_failure=False, reason=told)
    work.put_model(
        pointed_at(model, earlier, back),
        Act(
            "roll",
            f"returns to spec version {earlier.spec_version}: {why}",
            model.name,
            numbers=roll_numbers(model, fleet),
        ),
    )
