"""What applying, rolling back and deleting make of a model's record and its versions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from chiron.rpc.errors import ChironError, Reason
from chiron.store import Change, InstanceRecord, ModelRecord, Record, Snapshot
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from services.global_controller.operator_acts import apply_model, delete_model, rollback_model, scale_model
from services.global_controller.roll_view import model_versions, roll_status
from services.global_controller.versions import VERSIONS_KEPT, kept_versions
from tests.support.cluster_states import FAILED, LOADING, STOPPED, instance


class Store:
    """The state that operators' acts change."""

    def __init__(self, *instances: InstanceRecord) -> None:
        self.snapshot = Snapshot().after(Change(1, instances))
        self.acts: list[Any] = []

    @property
    def model(self) -> ModelRecord:
        return self.snapshot.models["chat"]

    @property
    def roll(self) -> tuple[str, int, int]:
        roll = self.model.roll
        name = pb.RollState.Name(roll.state).removeprefix("ROLL_STATE_")
        return name, roll.from_version, roll.to_version

    def apply(self, *, back: bool = False, now: int = 0, **fields: Any) -> bool:
        spec = pb.ModelSpec(**{"name": "chat", "engine": "sim", "gpus_per_instance": 1} | fields)
        draft, changed = apply_model(self.snapshot, spec, (), rollback_on_failure=back, now_unix_ms=now)
        self.write(draft)
        return changed

    def rollback(self, to_version: int = 0) -> None:
        self.write(rollback_model(self.snapshot, "chat", to_version))

    def write(self, draft: Any) -> None:
        self.acts = list(draft.acts) if draft else []
        self.put(*(draft.puts if draft else ()))

    def put(self, *puts: Record) -> None:
        self.snapshot = self.snapshot.after(Change(self.snapshot.revision + 1, puts))

    def finish(self, state: Any = pb.ROLL_STATE_DONE, reason: str = "") -> None:
        roll = dataclasses.replace(self.model.roll, state=state, reason=reason)
        self.put(dataclasses.replace(self.model, roll=roll))


def test_a_changed_spec_begins_a_roll_from_the_version_before() -> None:
    store = Store(instance("i", "a"), instance("gone", "a", desired=STOPPED))
    store.apply(revision="a", min_instances=1)
    assert store.roll == ("UNSPECIFIED", 0, 0)
    store.apply(revision="b", min_instances=1, back=True)
    assert store.roll == ("ROLLING", 1, 2)
    assert store.model.roll.rollback_on_failure
    assert (store.model.rollout_version, [one.spec_version for one in store.model.history]) == (2, [1])
    assert [act.action for act in store.acts] == ["apply_model", "roll"]
    assert store.acts[1].numbers == {
        "from_version": 1,
        "to_version": 2,
        "replaced": 0,
        "remaining": 1,
        "desired": 1,
    }


IN_PLACE = {
    "slo_defaults": pb.SloDefaults(interactive=types_pb2.Slo(ttft_ms=100)),
    "min_instances": 2,
    "max_instances": 7,
    "role": 3,
    "priority": -3,
    "drain_timeout_s": 60.0,
    "roll": pb.RollSettings(hold_s=1),
    "autoscaling": pb.AutoscalingSpec(local="reactive", enabled=True),
}
WITH_NEW_WORKERS = {
    "weights": "/w",
    "revision": "b",
    "gpus_per_instance": 2,
    "engine": "my:Engine",
    "engine_args": {"a": 1},
    "chat_template": "t",
    "max_batch_size": 8,
    "adapters": [pb.Adapter(name="x", path="/x")],
    "tool_parser": "t",
    "reasoning_parser": "r",
    "initial_batch_size": 8,
    "initial_step_token_budget": 64,
}


def test_every_field_of_a_spec_either_applies_in_place_or_rolls() -> None:
    known = {"name", *IN_PLACE, *WITH_NEW_WORKERS}
    assert known == {field.name for field in pb.ModelSpec.DESCRIPTOR.fields}


@pytest.mark.parametrize("field", IN_PLACE)
def test_a_change_of_what_no_worker_knows_applies_in_place(field: str) -> None:
    store = Store()
    store.apply()
    assert store.apply(**{field: IN_PLACE[field]})
    assert (store.model.spec_version, store.model.rollout_version) == (2, 1)
    assert store.roll == ("UNSPECIFIED", 0, 0)
    assert [act.action for act in store.acts] == ["apply_model"]


@pytest.mark.parametrize("field", WITH_NEW_WORKERS)
def test_a_change_of_what_a_worker_is_started_with_rolls(field: str) -> None:
    store = Store()
    store.apply()
    assert store.apply(**{field: WITH_NEW_WORKERS[field]})
    assert store.roll == ("ROLLING", 1, 2)


def test_an_earlier_spec_applied_again_is_served_by_the_workers_that_are_still_there() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b")
    store.apply(revision="a", priority=5)
    assert (store.model.spec_version, store.model.rollout_version) == (3, 1)
    assert store.roll == ("ROLLING", 2, 3)


def test_a_change_in_place_during_a_roll_does_not_disturb_it() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b")
    number = store.model.roll.number
    store.apply(revision="b", max_instances=9)
    assert (store.roll, store.model.roll.number) == (("ROLLING", 1, 3), number)
    assert store.model.rollout_version == 2


def test_a_second_change_supersedes_a_roll_that_is_not_over() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b")
    store.apply(revision="c")
    assert store.roll == ("ROLLING", 1, 3), "version 1 is the last that has proven itself"
    assert store.model.roll.number == 2
    assert "takes the place of the roll to 2" in store.acts[1].reason
    store.finish()
    store.apply(revision="d")
    assert store.roll == ("ROLLING", 3, 4)


def test_a_rollback_returns_to_the_version_itself_and_further_ones_go_further_back() -> None:
    store = Store()
    for revision in "abc":
        store.apply(revision=revision)
        store.finish()
    store.rollback()
    assert (store.model.spec_version, store.model.rollout_version) == (2, 2)
    assert store.model.parsed_spec().revision == "b"
    assert store.roll == ("ROLLING", 3, 2)
    store.finish()
    store.rollback()
    assert store.model.spec_version == 1
    with pytest.raises(ChironError, match=r"no version of 'chat' before 1 is kept; .*: 3, 2") as caught:
        store.rollback()
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
    store.rollback(3)
    assert store.model.spec_version == 3
    store.apply(revision="d")
    assert store.model.spec_version == 4


def test_a_change_on_the_way_back_can_fall_back_on_the_version_to_which_that_led() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b")
    store.rollback()
    store.apply(revision="c")
    assert store.roll == ("ROLLING", 1, 3)
    store.apply(revision="a", priority=1)
    assert store.roll == ("ROLLING", 3, 4)
    store.apply(revision="d")
    assert store.roll == ("ROLLING", 4, 5), "version 4 shares its workers with version 1"


def test_a_rollback_in_the_midst_of_a_roll_leads_back_from_the_new_version() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b", back=True)
    store.finish(pb.ROLL_STATE_STALLED, "k failed")
    store.rollback()
    assert store.roll == ("ROLLING", 2, 1)
    assert not store.model.roll.rollback_on_failure
    assert store.model.roll.reason == "an operator asked for version 1 again"


def test_a_rollback_keeps_the_wanted_count_within_the_earlier_specs_limits() -> None:
    store = Store()
    store.apply(revision="a", min_instances=1, max_instances=2)
    store.apply(revision="b", min_instances=4)
    store.rollback()
    assert store.model.desired_instances == 2


def test_a_rollback_to_a_version_with_the_same_workers_replaces_nothing() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="a", priority=3)
    store.rollback()
    assert (store.model.spec_version, store.model.parsed_spec().priority) == (1, 0)
    assert store.roll == ("UNSPECIFIED", 0, 0)


def test_a_version_that_is_not_there_is_refused_naming_those_that_are() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b")
    with pytest.raises(ChironError, match=r"no version 3 of 'chat' is kept; there are, .*: 1"):
        store.rollback(3)


def test_an_unknown_or_deleted_model_cannot_be_rolled_back() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b")
    store.write(delete_model(store.snapshot, "chat"))
    with pytest.raises(ChironError) as caught:
        store.rollback()
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_five_earlier_versions_are_kept_and_the_one_to_fall_back_on_always() -> None:
    store = Store()
    for number in range(1, 12):
        store.apply(revision=str(number))
    assert VERSIONS_KEPT == 5
    assert [one.spec_version for one in kept_versions(store.model)] == [11, 10, 9, 8, 7, 6, 1]
    store.finish()
    store.apply(revision="12")
    assert [one.spec_version for one in kept_versions(store.model)] == [12, 11, 10, 9, 8, 7]


def test_the_same_spec_again_gives_a_stalled_roll_another_try() -> None:
    store = Store(instance("k", "a", version=2, roll=1, state=FAILED))
    store.apply(revision="a")
    store.apply(revision="b")
    store.finish(pb.ROLL_STATE_STALLED, "k failed")
    assert not store.apply(revision="b", back=True)
    assert store.roll == ("ROLLING", 1, 2)
    assert (store.model.roll.number, store.model.roll.reason) == (1, "")
    assert store.model.roll.rollback_on_failure
    assert store.snapshot.instances["k"].desired == STOPPED
    assert [act.action for act in store.acts] == ["apply_model", "roll"]


def test_the_same_spec_again_changes_nothing_where_nothing_is_wrong() -> None:
    store = Store()
    store.apply(revision="a")
    before = store.snapshot
    assert not store.apply(revision="a", back=True)
    assert store.snapshot.models == before.models
    assert store.acts == []


def test_a_deleted_models_history_goes_and_its_numbers_stay() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b")
    store.rollback()
    store.write(delete_model(store.snapshot, "chat"))
    assert (store.model.history, store.roll) == ((), ("UNSPECIFIED", 0, 0))
    store.apply(revision="a")
    assert store.model.spec_version == 3
    assert (store.model.roll.number, store.model.history) == (2, ())


def test_scaling_leaves_a_roll_alone() -> None:
    store = Store()
    store.apply(revision="a")
    store.apply(revision="b")
    before = store.model
    store.write(scale_model(store.snapshot, "chat", 3))
    assert (store.model.roll, store.model.history) == (before.roll, before.history)


class TestWhatOperatorsSee:
    def status(self, store: Store, *instances: InstanceRecord) -> pb.RollStatus:
        shown = roll_status(store.model, instances)
        assert shown is not None
        return shown

    def rolling(self) -> Store:
        store = Store()
        store.apply(revision="a", min_instances=2, now=1_700_000_000_000)
        store.apply(revision="b", min_instances=2, now=1_700_000_001_000)
        return store

    def test_there_is_no_roll_before_the_first_change(self) -> None:
        store = Store()
        store.apply()
        assert roll_status(store.model, [instance("i", "a")]) is None

    def test_instances_found_running_roll_without_having_been_asked(self) -> None:
        store = Store()
        store.apply()
        shown = self.status(store, instance("i", "a", version=0))
        assert (shown.state, shown.from_version, shown.to_version) == (pb.ROLL_STATE_ROLLING, 0, 1)

    def test_the_counts(self) -> None:
        old, new = instance("i", "a", 0), instance("k", "a", 2, version=2, roll=1)
        gone = instance("j", "a", 1, desired=STOPPED)
        shown = self.status(self.rolling(), old, new, gone)
        assert (shown.replaced, shown.remaining) == (1, 1)

    @pytest.mark.parametrize(
        ("parts", "text"),
        [
            ([instance("k", "a", 2, version=2, state=LOADING), instance("i", "a")], "k must become ready"),
            (
                [instance("i", "a"), instance("j", "a", 1, desired=STOPPED)],
                "j must finish its requests and stop",
            ),
            ([instance("i", "a"), instance("k", "a", 2, version=2)], "stay ready for the hold time"),
            ([instance("i", "a")], "an instance of the new version must be placed"),
            (
                [instance("k", "a", version=2, state=LOADING)],
                "k must become ready; until then no instance serves and requests wait",
            ),
        ],
    )
    def test_what_the_next_step_waits_for(self, parts: list[InstanceRecord], text: str) -> None:
        assert self.status(self.rolling(), *parts).reason.endswith(text)

    def test_why_it_stalled(self) -> None:
        store = self.rolling()
        store.finish(pb.ROLL_STATE_STALLED, "k on a failed: no such weights")
        shown = self.status(store, instance("i", "a"))
        assert (shown.state, shown.reason) == (pb.ROLL_STATE_STALLED, "k on a failed: no such weights")

    def test_the_versions_newest_first_with_their_instances(self) -> None:
        store = self.rolling()
        parts = [instance("i", "a"), instance("j", "a", 1), instance("k", "a", 2, version=2)]
        newer, older = model_versions(store.model, parts)
        assert (newer.spec_version, newer.current, newer.instances) == (2, True, 1)
        assert (older.spec_version, older.current, older.instances) == (1, False, 2)
        assert (older.spec.revision, older.applied.seconds) == ("a", 1_700_000_000)
