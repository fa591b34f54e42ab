"""What `chiron router` says of a router."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from chiron.cli.router import view
from chiron.internal.v1 import router_pb2 as pb
from chiron.v1 import cluster_pb2, types_pb2


def shown(state: pb.GetRouterStateResponse) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(view(state))
    return "\n".join(" ".join(line.split()) for line in out.getvalue().splitlines())


def table(**fields: object) -> pb.GetRouterStateResponse:
    known = {"term": 3, "epoch": 7, "models": 2, "instances": 4, "file": "/var/lib/table", **fields}
    return pb.GetRouterStateResponse(router_id="r1", table=pb.RouterTableState(**known))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (pb.GetRouterStateResponse(), "no routing table: no controller has sent one"),
        (table(), "table of term 3, epoch 7: 2 models, 4 instances; a controller keeps it current"),
        (table(age_ms=61_400), "no controller: last known 61 s ago\n"),
        (table(age_ms=61_400, from_file=True), "last known 61 s ago, read from /var/lib/table"),
    ],
)
def test_it_says_where_the_table_is_from_and_how_old_it_is(
    state: pb.GetRouterStateResponse, text: str
) -> None:
    assert text in shown(state)


def test_it_shows_what_waits_and_how_long() -> None:
    state = table()
    assert "wait;" not in shown(state).partition("direct streams")[2]
    state.queues.add(
        model="m",
        waiting=types_pb2.ClassCounts(interactive=3, batch=1),
        interactive=pb.RouterWait(ahead=3, tokens_per_s=120, mean_ms=6400, quantile_ms=9000, quantile=0.95),
        batch=pb.RouterWait(ahead=4, quantile=0.95),
    )
    told = (
        "m: 3+1 wait; a new interactive request waits 6.4 s, 9.0 s at 95 %, behind 3 at 120 tokens/s; "
        "a new batch request waits for an instance that serves it"
    )
    assert told in shown(state)


@pytest.mark.parametrize(
    ("queue", "text"),
    [
        (pb.RouterBatchQueue(), "batch queue: it could not be read yet"),
        (
            pb.RouterBatchQueue(queued=12, units=3, running=4, session=7, read_age_ms=250),
            "batch queue: 12 items wait in 3 units, 4 run here; read 0.2 s ago; session 7",
        ),
        (
            pb.RouterBatchQueue(queued=12, units=3, read_age_ms=2000),
            "0 run here; read 2.0 s ago; no session: nothing is claimed",
        ),
    ],
)
def test_it_shows_the_batch_queue_of_a_router_that_has_one(queue: pb.RouterBatchQueue, text: str) -> None:
    state = table()
    assert "batch queue" not in shown(state)
    state.batch_queue.CopyFrom(queue)
    assert text in shown(state)


def test_it_shows_how_much_of_prompts_was_cached_and_how_much_was_expected() -> None:
    state = table()
    state.prefixes.add(model="quiet", limit=100)
    state.prefixes.add(
        model="m",
        remembered=12,
        limit=100,
        requests=3,
        prompt_tokens=1000,
        expected_tokens=700,
        cached_tokens=650,
    )
    text = shown(state)
    assert "prompts of quiet: 0 of at most 100 beginnings remembered\n" in text
    assert "prompts of m: 12 of at most 100 beginnings remembered; 65 % of the tokens of 3 prompts" in text
    assert "were cached where they went, 70 % expected" in text


def test_it_shows_what_is_held_and_which_instances_are_ejected() -> None:
    state = table()
    state.counts.MergeFrom(
        pb.RouterCounts(calls=5, streams=4, waiting=types_pb2.ClassCounts(interactive=1, batch=2), retries=3)
    )
    state.instances.add(
        instance_id="a", model="m", role=types_pb2.ROLE_MIXED, state=types_pb2.INSTANCE_STATE_READY
    )
    state.instances.add(
        instance_id="b",
        model="m",
        role=types_pb2.ROLE_BATCH,
        ejected=cluster_pb2.EjectedInstance(instance_id="b", reason="silent for 2.5 s"),
    )
    text = shown(state)
    assert "5 calls, 4 of them streams; 1+2 wait; 0 slots reserved; 0 direct streams; 3 retries" in text
    assert "a m mixed READY 0 0" in text
    assert "b m batch not heard 0 0 silent for 2.5 s" in text
