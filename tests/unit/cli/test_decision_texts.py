"""Decisions in sentences, for wide and narrow terminals."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from chiron.cli.decision_text import came_of, children, headline, in_short, numbers, seen, why_not
from chiron.cli.explain import ExplainOptions, explanation, overview, show_explanations
from chiron.cli.main import _with_values
from chiron.cli.runner import CliError
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

NOW_MS = 1_763_900_000_000.0


def made(**fields: Any) -> pb.Decision:
    base: dict[str, Any] = {
        "decision_id": "7-3",
        "action": "place",
        "model": "chat",
        "instance_id": "chat-a",
        "node_id": "n1",
        "reason": "demand exceeds the target share",
    }
    decision = pb.Decision(**(base | fields))
    decision.time.FromMilliseconds(int(NOW_MS) - 252_000)
    return decision


INPUTS = pb.DecisionInputs(
    instances=[
        pb.InstanceCount(role=types_pb2.ROLE_MIXED, state=types_pb2.INSTANCE_STATE_READY, count=2, slots=512),
        pb.InstanceCount(role=types_pb2.ROLE_BATCH, state=types_pb2.INSTANCE_STATE_LOADING, count=1),
    ],
    running=types_pb2.ClassCounts(interactive=430, batch=12),
    queued=types_pb2.ClassCounts(interactive=31),
    interactive_per_s=41.23,
    ibp=0.93,
    theta=0.85,
    bbp=1,
    batch_items=500,
    groups=[
        pb.BacklogGroup(deadline_in_s=600, requests=120, finish_in_s=840),
        pb.BacklogGroup(deadline_in_s=-5, requests=3),
        pb.BacklogGroup(requests=7, finish_in_s=30),
    ],
    further_groups=2,
    gpus=8,
    free_gpus=3,
    free_gpus_on={"n1": 2, "n2": 1},
    oldest_report_s=0.9,
    silent_nodes=1,
)


def outcome(
    state: pb.OutcomeState.ValueType, *milestones: tuple[str, float], **fields: Any
) -> pb.DecisionOutcome:
    fields = {"kind": pb.OUTCOME_KIND_STARTED} | fields
    return pb.DecisionOutcome(
        state=state, milestones=[pb.Milestone(name=name, after_s=at) for name, at in milestones], **fields
    )


def drawn(renderable: Any, width: int, *, terminal: bool = True) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=terminal, color_system=None).print(renderable)
    return out.getvalue()


def test_what_was_seen_is_told_in_numbers() -> None:
    assert seen(INPUTS) == [
        "2 mixed READY (512 slots), 1 batch LOADING.",
        "430 interactive and 12 batch running, 31 interactive waiting in routers, 500 batch items queued, "
        "41.2 interactive arriving per second.",
        "IBP 0.93, Θ 0.85, BBP 1.",
        "Batch requests: 120 due in 10m00s, expected in 14m00s (late); 3 due 5.0 s ago; "
        "7 without a deadline, expected in 30.0 s; 2 further groups.",
        "3 of 8 GPUs free (n1 2, n2 1); 1 node not heard of; the oldest report is 0.9 s old.",
    ]


def test_nothing_is_told_of_what_was_not_known() -> None:
    assert seen(pb.DecisionInputs(gpus=2)) == [
        "No instance.",
        "No request runs, waits or arrives.",
        "0 of 2 GPUs free; the oldest report is 0 s old.",
    ]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "placed chat-a on n1"),
        ({"action": "scale", "instance_id": ""}, "changed how many instances of chat should run"),
        ({"action": "move_over"}, "move over chat-a on n1"),
        ({"action": "drain_node", "model": "", "instance_id": ""}, "changed whether n1 takes instances"),
        (
            {"action": "replace", "outcome": outcome(pb.OUTCOME_STATE_OPEN, kind=pb.OUTCOME_KIND_STOPPED)},
            "stopped chat-a on n1 to replace an instance",
        ),
    ],
)
def test_what_was_done_is_one_clause(fields: dict[str, Any], text: str) -> None:
    assert headline(made(**fields)) == text


def test_alternatives_and_numbers_are_told_and_what_the_inputs_tell_is_not_told_twice() -> None:
    decision = made(
        inputs=INPUTS,
        numbers={"ibp": 0.93, "slots": 512.0},
        alternatives=[pb.DecisionAlternative(action="wake one", why_not="none sleeps")],
    )
    assert numbers(decision) == "slots 512"
    assert why_not(decision) == ["wake one: none sleeps."]
    assert numbers(made(numbers={f"n{i:02}": i for i in range(14)})).endswith("n11 11, and 2 more (--json)")


@pytest.mark.parametrize(
    ("told", "brief", "sentences"),
    [
        (
            outcome(
                pb.OUTCOME_STATE_DONE,
                ("sent", 0.04),
                ("ready", 12.3),
                ("first_request", 12.9),
                need=pb.DecisionNeed(
                    needed=True, peak_use=0.74, peak_without=1.21, limit=0.85, window_s=12.3
                ),
            ),
            "ready after 12.3 s, needed",
            [
                "Its agent was told after 40 ms, it was ready after 12.3 s, "
                "its first request came after 12.9 s.",
                "It was needed: without it requests would have been 1.21 of the other slots, more than 0.85; "
                "its own use peaked at 0.74 in 12.3 s.",
            ],
        ),
        (
            outcome(pb.OUTCOME_STATE_OPEN, ("sent", 0.04), reason="waits for its node to start it"),
            "not ready yet",
            ["Its agent was told after 40 ms.", "Not ready yet: waits for its node to start it."],
        ),
        (
            outcome(pb.OUTCOME_STATE_OPEN, ("ready", 3)),
            "ready after 3.0 s",
            ["It was ready after 3.0 s.", "Whether it is needed is watched."],
        ),
        (
            outcome(
                pb.OUTCOME_STATE_OPEN,
                ("ready", 3),
                need=pb.DecisionNeed(peak_use=0, peak_without=0.25, limit=0.85, window_s=5),
            ),
            "ready after 3.0 s, not needed",
            [
                "It was ready after 3.0 s.",
                "Its first request is waited for.",
                "It was not needed: without it requests would have been 0.25 of the other slots, "
                "no more than 0.85; its own use peaked at 0.00 in 5.0 s.",
            ],
        ),
        (
            outcome(pb.OUTCOME_STATE_OPEN, ("stopped", 0.5), kind=pb.OUTCOME_KIND_STOPPED),
            "stopped after 0.5 s",
            [
                "It had stopped and its GPUs were free after 0.5 s.",
                "Whether it is undone is still watched.",
            ],
        ),
        (
            outcome(pb.OUTCOME_STATE_FAILED, reason="out of memory"),
            "failed: out of memory",
            ["It failed: out of memory."],
        ),
        (
            outcome(
                pb.OUTCOME_STATE_DONE,
                ("stopped", 6.0),
                ("reversed", 9.0),
                kind=pb.OUTCOME_KIND_STOPPED,
                reversed_by="7-9",
            ),
            "stopped after 6.0 s, undone after 9.0 s",
            [
                "It had stopped and its GPUs were free after 6.0 s.",
                "It was undone after 9.0 s by decision 7-9.",
            ],
        ),
        (
            outcome(
                pb.OUTCOME_STATE_OVERTAKEN, ("ready", 2.0), reason="stop came 1.0 s after that: too many"
            ),
            "ready after 2.0 s, undone since",
            ["It was ready after 2.0 s.", "Stop came 1.0 s after that: too many."],
        ),
    ],
)
def test_what_came_of_it(told: pb.DecisionOutcome, brief: str, sentences: list[str]) -> None:
    decision = made(outcome=told)
    assert in_short(decision) == brief
    assert came_of(decision) == sentences


def test_what_came_of_a_decision_about_a_model_is_what_followed_from_it() -> None:
    scale = made(action="scale", instance_id="", decision_id="7-1")
    placed = made(cause="7-1", outcome=outcome(pb.OUTCOME_STATE_DONE, ("ready", 2.0)))
    other = made(cause="7-0")
    assert children(scale, [other, placed, scale]) == [placed]
    assert came_of(scale, [placed]) == ["placed chat-a on n1: ready after 2.0 s."]
    assert came_of(scale) == ["No other decision has followed."]


def test_a_wide_terminal_has_labels_beside_and_a_narrow_one_above() -> None:
    scale = made(action="scale", instance_id="", reason="an operator asked for 3")
    shown = explanation(made(inputs=INPUTS, cause="7-3"), [scale], [], NOW_MS)
    wide, narrow = drawn(shown, 120), drawn(shown, 40)
    assert "Seen     2 mixed READY" in wide
    assert "\nSeen\n  2 mixed READY" in narrow
    assert max(map(len, narrow.splitlines())) <= 40
    assert "Because  changed how many instances of chat should run: an operator asked for 3. [7-3]" in wide
    assert "decision 7-3 · " in wide
    assert "4m12s ago" in wide


def test_what_is_not_a_terminal_has_each_sentence_on_one_line() -> None:
    text = drawn(explanation(made(inputs=INPUTS), [], [], NOW_MS), 1000, terminal=False)
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert text.splitlines()[2].startswith(
        "Seen  2 mixed READY (512 slots), 1 batch LOADING. 430 interactive"
    )


def test_the_overview_has_the_reason_and_what_came_of_it() -> None:
    other = made(model="code", instance_id="code-b", outcome=outcome(pb.OUTCOME_STATE_OPEN))
    text = drawn(overview([made(), other], NOW_MS), 100, terminal=False)
    assert "placed chat-a on n1\n" in text
    assert "Then  not ready yet." in text
    assert drawn(overview([], NOW_MS), 100).strip() == "no decision has been made yet"


def advised(number: int, model: str = "chat") -> pb.Decision:
    text = "start 1 (advisory mode): IBP is above Θ"
    return made(decision_id=f"7-{number}", action="advised", model=model, instance_id="", reason=text)


def test_advice_is_told_as_advice() -> None:
    shown = drawn(explanation(advised(4), [], [], NOW_MS), 1000, terminal=False)
    assert shown.startswith("advised, and did not act on chat\n")
    assert "Advice  start 1 (advisory mode): IBP is above Θ." in shown
    assert "Then    Nothing was done: it is advice." in shown
    assert "Advice  start 1 (advisory mode): IBP is above Θ." in drawn(overview([advised(4)], NOW_MS), 1000)


class NothingKept:
    """A cluster's administration that has never decided anything."""

    def __init__(self, controller: str) -> None:
        assert controller == "h:1"

    async def __aenter__(self) -> NothingKept:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def snapshot(self) -> pb.ClusterSnapshot:
        return pb.ClusterSnapshot()

    async def decisions(self, **_: object) -> list[pb.Decision]:
        return []


class Untouched(NothingKept):
    """One with a model about which nothing was decided."""

    async def snapshot(self) -> pb.ClusterSnapshot:
        return pb.ClusterSnapshot(models=[pb.ModelStatus(spec=pb.ModelSpec(name="chat"))])


async def test_what_was_asked_for_is_named_where_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("chiron.cli.explain.ClusterAdmin", NothingKept)
    for options in (
        ExplainOptions("h:1", model="caht"),
        ExplainOptions("h:1", model="caht", last=3),
        ExplainOptions("h:1", model="caht", as_json=True),
    ):
        with pytest.raises(
            CliError, match=r"^there is no model 'caht'; no decision about caht is kept$"
        ) as slip:
            await show_explanations(options)
        assert slip.value.status != 0
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("chiron.cli.explain.ClusterAdmin", Untouched)
    assert await show_explanations(ExplainOptions("h:1", model="chat")) == 0
    assert capsys.readouterr().out.strip() == "no decision about chat is kept"
    assert await show_explanations(ExplainOptions("h:1")) == 0
    assert capsys.readouterr().out.strip() == "no decision has been made yet"


class Adviser(NothingKept):
    """One that has advised of late, and acted before."""

    async def snapshot(self) -> pb.ClusterSnapshot:
        names = ("chat", "code", "quiet")
        return pb.ClusterSnapshot(models=[pb.ModelStatus(spec=pb.ModelSpec(name=name)) for name in names])

    async def decisions(self, **_: object) -> list[pb.Decision]:
        quiet = made(decision_id="7-5", model="quiet", instance_id="quiet-a")
        older = [made(decision_id="7-3"), advised(2), advised(1, "code")]
        return [advised(9), advised(8), quiet, advised(4, "quiet"), *older]


async def test_advice_hides_no_decision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("chiron.cli.explain.ClusterAdmin", Adviser)
    await show_explanations(ExplainOptions("h:1"))
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("decision ")]
    assert shown == ["7-3", "7-9", "7-1", "7-5"], "advice from before a decision is over"


def test_last_may_lack_its_number() -> None:
    assert _with_values(["explain", "--last"]) == ["explain", "--last=1"]
    assert _with_values(["explain", "--last", "--json"]) == ["explain", "--last=1", "--json"]
    assert _with_values(["explain", "--last", "5"]) == ["explain", "--last", "5"]
