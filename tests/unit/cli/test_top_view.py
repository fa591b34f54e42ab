"""The cluster at work as one screen, or as a line for each change."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rich.console import Console

from chiron.cli.at_work import Lines
from chiron.cli.runner import CliError
from chiron.cli.top import of_model, show_top
from chiron.cli.top_view import attained, by_role, clock, cluster_line, decision_line, gpu_counts, top_view
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

READY, LOADING = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_LOADING
SLEEPING, MIXED, BATCH = types_pb2.INSTANCE_STATE_SLEEPING, types_pb2.ROLE_MIXED, types_pb2.ROLE_BATCH


def instance(name: str, gpu: int, state: Any, *, role: Any = MIXED, **load: Any) -> pb.InstanceStatus:
    model = name.rpartition("-")[0]
    return pb.InstanceStatus(
        instance_id=name, model=model, node_id="n1", gpu_indexes=[gpu], role=role, state=state,
        load=pb.InstanceLoad(**load),
    )  # fmt: skip


def cluster(**fields: Any) -> pb.ClusterSnapshot:
    base: dict[str, Any] = {
        "controllers": [pb.ControllerStatus(address="c1:50050", leader=True, reign_ms=125_000)],
        "nodes": [
            pb.NodeStatus(
                node_id="n1", live=True, gpus=[pb.Gpu(index=index, healthy=index != 5) for index in range(6)]
            ),
            pb.NodeStatus(node_id="n2", gpus=[pb.Gpu(index=0, healthy=True)]),
        ],
        "routers": [pb.RouterStatus(router_id="r", queued=types_pb2.ClassCounts(interactive=3, batch=1))],
        "models": [
            pb.ModelStatus(
                spec=pb.ModelSpec(name="chat"),
                ready_instances=2,
                desired_instances=3,
                attainment=pb.Attainment(
                    last_minute=pb.AttainmentWindow(interactive=pb.ClassAttainment(requests=200, met=199))
                ),
            )
        ],
        "instances": [
            instance(
                "chat-a",
                0,
                READY,
                batch_size=10,
                safe_batch_size=8,
                running=types_pb2.ClassCounts(interactive=6, batch=2),
                waiting=types_pb2.ClassCounts(interactive=1),
                tokens_per_s=120.4,
            ),
            instance("chat-b", 1, READY, role=BATCH, batch_size=10, safe_batch_size=10),
            instance("chat-c", 2, LOADING),
            instance("chat-d", 3, SLEEPING),
            instance("code-e", 0, SLEEPING),
        ],
    }
    return pb.ClusterSnapshot(**(base | fields))


def made(number: int, **fields: Any) -> pb.Decision:
    base: dict[str, Any] = {
        "decision_id": f"7-{number}", "action": "place", "model": "chat", "instance_id": f"chat-{number}",
        "node_id": "n1", "reason": f"reason {number}",
    }  # fmt: skip
    return pb.Decision(**(base | fields))


def drawn(width: int, snapshot: pb.ClusterSnapshot, *decisions: pb.Decision, shown: int = 8) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(top_view(snapshot, decisions, decisions_shown=shown))
    return out.getvalue()


def test_each_gpu_counts_once_and_those_of_lost_nodes_not_at_all() -> None:
    # GPU 0 is one model's that is awake, and another's that sleeps on it.
    assert gpu_counts(cluster()) == {"awake": 3, "asleep": 1, "free": 1, "out of use": 1}


def test_the_first_line_has_gpus_nodes_leader_and_queues() -> None:
    queue = pb.BatchQueueStatus(queue_id="q", waiting=40)
    snapshot = cluster(routers=[pb.RouterStatus(batch_queue=queue), pb.RouterStatus(batch_queue=queue)])
    assert cluster_line(cluster()).plain == (
        "6 GPUs: 3 awake, 1 asleep, 1 free, 1 out of use · 1 of 2 nodes · c1:50050 leads for 2m05s · "
        "1 router, 3 interactive and 1 batch wait there"
    )
    assert cluster_line(snapshot).plain.endswith("40 batch items queued")
    assert "nobody leads" in cluster_line(pb.ClusterSnapshot()).plain


def test_a_model_shows_its_roles_backpressure_and_attainment() -> None:
    text = drawn(160, cluster())
    row = next(line for line in text.splitlines() if line.startswith("chat "))
    cells = row.split()
    assert "2/3" in cells
    assert "8/20" in cells
    # Seven interactive requests on ten interactive slots: the batch instance's do not count.
    assert "0.70" in cells
    assert "99.5%" in cells
    roles = "1 batch READY, 1 mixed LOADING, 1 mixed READY, 1 mixed SLEEPING"
    assert by_role(cluster().instances[:4]) == roles


def test_the_autoscalers_figures_come_first_and_what_holds_it_is_said() -> None:
    snapshot = cluster()
    status = pb.AutoscaleStatus(
        state=pb.AUTOSCALE_STATE_HOLDING, ibp=0.91, theta=0.85, bbp=2, reason="reports are late",
        numbers={"ibp": 0.91},
    )  # fmt: skip
    snapshot.models[0].autoscale.CopyFrom(status)
    text = drawn(160, snapshot)
    assert "chat: autoscaling holding: reports are late" in text
    assert {"0.91", "0.85", "2"} <= set(next(one for one in text.splitlines() if "99.5%" in one).split())


def test_a_narrow_terminal_keeps_the_model_and_how_many_serve() -> None:
    text = drawn(40, cluster(), made(1))
    assert max(map(len, text.splitlines())) <= 40
    assert "2/3" in text


def test_the_newest_decisions_are_at_the_bottom_with_what_came_of_them() -> None:
    done = pb.DecisionOutcome(
        state=pb.OUTCOME_STATE_DONE,
        kind=pb.OUTCOME_KIND_STARTED,
        milestones=[pb.Milestone(name="ready", after_s=2.0)],
        need=pb.DecisionNeed(needed=True),
    )
    text = drawn(120, cluster(), *(made(number) for number in range(9)), made(9, outcome=done), shown=3)
    lines = [line for line in text.splitlines() if "placed" in line]
    assert [line.split("placed ")[1].split()[0] for line in lines] == ["chat-7", "chat-8", "chat-9"]
    assert lines[-1].rstrip().endswith("ready after 2.0 s, needed")
    assert lines[0].rstrip().endswith("reason 7")


def test_elsewhere_each_change_of_a_decision_is_one_line() -> None:
    out = io.StringIO()
    lines = Lines(Console(file=out, width=80))
    opened = made(1, outcome=pb.DecisionOutcome(kind=pb.OUTCOME_KIND_STARTED, state=pb.OUTCOME_STATE_OPEN))
    lines.cluster(cluster())
    for decision in (opened, opened, made(1)):
        lines.decision(decision)
    told = out.getvalue().splitlines()
    assert told[0] == "chat-a on n1 READY"
    assert [line.split(" ", 1)[1] for line in told[5:]] == [
        "placed chat-1 on n1: reason 1 [not ready yet]",
        "placed chat-1 on n1: reason 1",
    ]
    assert decision_line(opened).endswith("[not ready yet]")


def test_one_model_alone_is_shown_when_one_is_named() -> None:
    snapshot = cluster(models=[pb.ModelStatus(spec=pb.ModelSpec(name=name)) for name in ("chat", "code")])
    assert [one.spec.name for one in of_model(snapshot, "code").models] == ["code"]
    assert of_model(snapshot, "") is snapshot
    assert [one.instance_id for one in of_model(snapshot, "code").instances] == ["code-e"]
    # By them the screen counts the GPUs in use.
    assert gpu_counts(of_model(snapshot, "code", whole=True)) == gpu_counts(snapshot)


async def test_a_pipe_has_one_model_s_instances_alone_and_a_slip_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Admin:
        def __init__(self, _: str) -> None: ...

        async def __aenter__(self) -> Admin:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def watch(self) -> AsyncIterator[pb.ClusterSnapshot]:
            yield cluster()

        async def watch_decisions(self, **_: object) -> AsyncIterator[pb.Decision]:
            for known in ():
                yield known

    monkeypatch.setattr("chiron.cli.top.ClusterAdmin", Admin)
    assert await show_top("h:1", model="chat", as_json=False) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["chat-a", "chat-b", "chat-c", "chat-d"]
    with pytest.raises(CliError, match=r"^there is no model 'caht'$"):
        await show_top("h:1", model="caht", as_json=False)


def test_eighty_columns_show_when_and_of_which_model() -> None:
    why = "start 3 mixed (advisory mode): interactive: demand exceeds the target share of the slots"
    advised = made(1, action="advised", instance_id="", node_id="", reason=why)
    placed = made(2, model="chat", outcome=pb.DecisionOutcome(state=pb.OUTCOME_STATE_OPEN))
    lines = drawn(80, cluster(), advised, placed).splitlines()[-2:]
    assert lines[0].startswith(f"{clock(advised)}  advised, and did not act on chat  start 3 mixed")
    assert lines[0].rstrip().endswith("…")
    assert lines[1].startswith(f"{clock(placed)}  placed chat-2 on n1  ")
    assert lines[0].index("start 3") == lines[1].index("under way")


@pytest.mark.parametrize(("requests", "met", "text"), [(0, 0, ""), (3, 2, "66.7%")])
def test_attainment_is_of_the_last_minute(requests: int, met: int, text: str) -> None:
    window = pb.AttainmentWindow(interactive=pb.ClassAttainment(requests=requests, met=met))
    assert attained(pb.Attainment(last_minute=window)) == text
