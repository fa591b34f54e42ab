from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from chiron.cli.progress import LineProgress
from chiron.cli.status import leaderless_tables, tables, to_json
from chiron.cluster.leaderless import Standing
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2


def snapshot() -> pb.ClusterSnapshot:
    cluster = pb.ClusterSnapshot(revision=4)
    cluster.nodes.add(
        node_id="node-0", host="10.0.0.1", live=True, gpus=[pb.Gpu(index=n, healthy=True) for n in (0, 1)]
    )
    cluster.nodes.add(node_id="node-1", host="10.0.0.2", live=False)
    cluster.models.add(
        spec=pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1),
        spec_version=2,
        desired_instances=2,
        ready_instances=1,
        reason="1 instance failed",
    )
    cluster.instances.add(
        instance_id="toy-a",
        model="toy",
        node_id="node-0",
        gpu_indexes=[1],
        role=types_pb2.ROLE_MIXED,
        state=types_pb2.INSTANCE_STATE_READY,
        load=pb.InstanceLoad(
            batch_size=32,
            running=types_pb2.ClassCounts(interactive=3, batch=2),
            waiting=types_pb2.ClassCounts(batch=1),
            tokens_per_s=123.4,
        ),
    )
    cluster.instances.add(
        instance_id="toy-b",
        model="toy",
        node_id="node-1",
        role=types_pb2.ROLE_BATCH,
        state=types_pb2.INSTANCE_STATE_FAILED,
        reason="cannot read /weights",
        restarts=5,
    )
    return cluster


def rendered(cluster: pb.ClusterSnapshot, width: int = 400) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(tables(cluster))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_while_nobody_leads_it_shows_who_answers_and_what_the_store_s_trouble_is() -> None:
    out = io.StringIO()
    standings = [
        Standing("c:1", answers=False, reason="connection refused"),
        Standing("c:2", True, store_kind="etcd", store_state="ok"),
        Standing("c:3", True, "", "etcd", "unavailable", "no member of etcd answers", 12.3),
    ]
    Console(file=out, width=200).print(leaderless_tables(standings))
    assert [" ".join(line.split()) for line in out.getvalue().splitlines()] == [
        "controller role",
        "c:1 silent; connection refused",
        "c:2 answers, and does not lead",
        "c:3 answers, and does not lead",
        "store state",
        "etcd unavailable for 12 s: no member of etcd answers",
    ]


def test_a_node_that_a_new_leader_still_waits_for_is_not_called_lost() -> None:
    cluster = snapshot()
    cluster.nodes[1].report_age_ms = 1000
    cluster.controllers.add(address="c:1", leader=True, settling=True, awaited_nodes=["node-1"])
    assert "node-1 not heard of yet 0/0 10.0.0.2" in rendered(cluster)
    cluster.controllers[0].settling = False
    assert "node-1 lost 0/0 10.0.0.2 1.0 s ago" in rendered(cluster)


def test_an_instance_of_a_lost_node_is_said_to_be_one() -> None:
    cluster = snapshot()
    cluster.instances[1].state, cluster.instances[1].reason = types_pb2.INSTANCE_STATE_READY, ""
    text = "its node is lost; the rest is what was last heard"
    assert f"toy-b node-1 batch READY 0+0/0 0+0 0 5 {text}" in rendered(cluster)
    cluster.controllers.add(address="c:1", leader=True, settling=True, awaited_nodes=["node-1"])
    assert text not in "".join(rendered(cluster)), "the new leader has not heard of it yet"
    assert "toy-a node-0 1 mixed READY 3+2/32 0+1 123 0" in rendered(cluster)


def test_an_instance_shows_role_state_load_and_reason() -> None:
    rows = rendered(snapshot())

    assert "toy-a node-0 1 mixed READY 3+2/32 0+1 123 0" in rows
    assert "toy-b node-1 batch FAILED 0+0/0 0+0 0 5 cannot read /weights" in rows


def test_an_instance_shows_what_its_local_autoscaler_makes_of_it() -> None:
    cluster = snapshot()
    one = cluster.instances[0]
    one.load.safe_batch_size, one.local.backpressure, one.local.set_batch_size = 24, 0.876, 8
    assert "toy-a node-0 1 mixed READY 3+2/32 0+1 24 0.88 123 0 set by an operator: batch size 8" in rendered(
        cluster
    )
    one.local.error, one.local.set_step_token_budget = "it raised", 512
    said = "set by an operator: batch size 8, step tokens 512; limits held: it raised"
    assert any(row.endswith(said) for row in rendered(cluster))


def test_a_model_shows_how_many_instances_are_ready_and_what_stands_in_the_way() -> None:
    assert "toy sim 1/2 1 v2 1 instance failed" in rendered(snapshot())


@pytest.mark.parametrize(
    ("roll", "row"),
    [
        (
            pb.RollStatus(
                state=pb.ROLL_STATE_ROLLING,
                from_version=1,
                to_version=2,
                replaced=1,
                remaining=2,
                reason="toy-c must become ready",
            ),
            "toy sim 1/2 1 v1→v2 1/3 1 instance failed; rolling: toy-c must become ready",
        ),
        (
            pb.RollStatus(
                state=pb.ROLL_STATE_STALLED, from_version=1, to_version=2, remaining=2, reason="why"
            ),
            "toy sim 1/2 1 v1→v2 0/2 1 instance failed",
        ),
        (
            pb.RollStatus(state=pb.ROLL_STATE_ROLLING, to_version=2, remaining=1, reason="x"),
            "toy sim 1/2 1 ?→v2 0/1 1 instance failed; rolling: x",
        ),
        (
            pb.RollStatus(state=pb.ROLL_STATE_DONE, from_version=3, to_version=2, reason="rolled back: why"),
            "toy sim 1/2 1 v2 1 instance failed; rolled back: why",
        ),
        (
            pb.RollStatus(state=pb.ROLL_STATE_DONE, from_version=3, to_version=1, reason="rolled back: why"),
            "toy sim 1/2 1 v2 1 instance failed",
        ),
    ],
)
def test_a_model_shows_how_far_its_roll_has_come(roll: pb.RollStatus, row: str) -> None:
    cluster = snapshot()
    cluster.models[0].roll.CopyFrom(roll)
    assert row in rendered(cluster)


def test_a_node_shows_its_gpus_in_use_and_a_lost_one_says_so() -> None:
    rows = rendered(snapshot())

    assert "node-0 live 1/2 10.0.0.1 0.0 s ago" in rows
    assert "node-1 lost 0/0 10.0.0.2 0.0 s ago" in rows


def test_a_router_shows_its_address_and_its_queue() -> None:
    cluster = snapshot()
    cluster.routers.add(
        router_id="router-0",
        address="10.0.0.1:50051",
        report_age_ms=400,
        queued=types_pb2.ClassCounts(interactive=7, batch=2),
    )

    assert "router-0 10.0.0.1:50051 7+2 0.4 s ago" in rendered(cluster)


def test_a_router_shows_which_instances_it_keeps_requests_from() -> None:
    cluster = snapshot()
    router = cluster.routers.add(router_id="router-0", address="10.0.0.1:50051")
    router.ejected.add(instance_id="toy-a", reason="silent for 2.5 s")
    router.ejected.add(instance_id="toy-b", reason="3 failures in a row")

    assert "toy-a: silent for 2.5 s; toy-b: 3 failures in a row" in " ".join(rendered(cluster))


def narrow() -> pb.ClusterSnapshot:
    """A busy cluster with long names."""
    cluster = snapshot()
    cluster.instances[0].instance_id = "mistral-7b-instruct-2aa41c"
    cluster.instances[1].instance_id = "mistral-7b-instruct-90fe13"
    cluster.instances[1].reason = "the weights folder /models/mistral-7b-instruct holds no config.json"
    cluster.routers.add(router_id="gateway-1.example-4242", address="10.20.30.40:50051")
    return cluster


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_a_narrow_terminal_shows_ids_and_states_whole(width: int) -> None:
    rows = rendered(narrow(), width)

    assert [row for row in rows if row.startswith("mistral-7b-instruct-2aa41c") and "READY" in row]
    assert [row for row in rows if row.startswith("mistral-7b-instruct-90fe13") and "FAILED" in row]
    assert [row for row in rows if row.startswith("gateway-1.example-4242")]
    assert not any("…" in row for row in rows)
    assert max(map(len, rows)) <= width


def test_at_eighty_columns_it_shows_where_an_instance_is_and_why_it_failed() -> None:
    text = " ".join(rendered(narrow(), 80))

    assert "mistral-7b-instruct-2aa41c node-0 READY" in text
    assert "the weights folder" in text
    assert "-instruct holds no" in text


def test_what_is_wider_than_the_terminal_goes_on_in_the_next_line() -> None:
    rows = rendered(narrow(), 24)

    assert not any("…" in row for row in rows)
    cells = "".join(row.split()[0] for row in rows if row)
    assert "mistral-7b-instruct-2aa41c" in cells
    assert "mistral-7b-instruct-90fe13" in cells


def test_json_has_the_fields_own_names_and_their_defaults() -> None:
    instance = json.loads(to_json(snapshot()))["instances"][0]

    assert instance["instance_id"] == "toy-a"
    assert instance["state"] == "INSTANCE_STATE_READY"
    assert instance["reason"] == ""


def test_lines_tell_changes_once() -> None:
    out = io.StringIO()
    lines = LineProgress(Console(file=out, width=400))
    cluster = snapshot()

    lines.update(cluster)
    lines.update(cluster)
    cluster.instances[0].state = types_pb2.INSTANCE_STATE_DRAINING
    del cluster.instances[1]
    lines.update(cluster, "5 s: fine")

    assert out.getvalue().splitlines() == [
        "toy-a on node-0 READY",
        "toy-b on node-1 FAILED: cannot read /weights",
        "model toy: 1 instance failed",
        "toy-a on node-0 DRAINING",
        "toy-b is gone",
        "5 s: fine",
    ]


def test_what_waits_in_a_batch_queue_is_shown_at_the_router_that_has_one() -> None:
    cluster = snapshot()
    cluster.routers.add(router_id="without")
    assert not any("batch items" in line for line in rendered(cluster))
    cluster.routers.add(router_id="with", batch_queue=pb.BatchQueueStatus(queue_id="q", waiting=4711))
    cluster.routers.add(router_id="idle", batch_queue=pb.BatchQueueStatus(queue_id="q"))
    rows = {line.split()[0]: line.split() for line in rendered(cluster) if line.strip()}
    assert "4711" in rows["with"]
    assert "0" in rows["idle"]
    assert "0" not in rows["without"]


def test_slo_attainment_is_shown_by_model_and_class_once_something_has_ended() -> None:
    cluster = snapshot()
    assert not [line for line in rendered(cluster) if "SLO attainment" in line]
    told = cluster.models[0].attainment
    told.since_start.interactive.MergeFrom(
        pb.ClassAttainment(requests=2000, met=1999, missed_ttft=1, missed_itl=1)
    )
    told.last_ten_minutes.interactive.MergeFrom(pb.ClassAttainment(requests=10, met=10))
    told.since_start.batch.MergeFrom(
        pb.ClassAttainment(requests=7, missed_deadline=4, refused=2, failed=1, met=0)
    )
    rows = [line for line in rendered(cluster) if " % of " in line]
    assert [" ".join(row.replace("│", " ").split()) for row in rows] == [
        "toy interactive - 100 % of 10 99.9 % of 2000 1 TTFT, 1 ITL",
        "toy batch - - 0 % of 7 4 deadline, 2 refused, 1 failed",
    ]


def test_the_autoscaler_s_view_of_a_model_is_shown_once_its_spec_asks_for_it() -> None:
    cluster = snapshot()
    assert not [line for line in rendered(cluster) if "IBP" in line]
    told = cluster.models[0].autoscale
    told.MergeFrom(
        pb.AutoscaleStatus(
            state=pb.AUTOSCALE_STATE_PINNED,
            ibp=0.914,
            theta=0.85,
            bbp=2,
            wanted_mixed=3,
            wanted_batch=1,
            tick_age_ms=400,
            reason="wanted 4, an operator pinned 5",
        )
    )
    rows = [" ".join(line.replace("│", " ").split()) for line in rendered(cluster)]
    assert "toy pinned 0.91 0.85 2 3 mixed, 1 batch 0.4 s ago wanted 4, an operator pinned 5" in rows
