"""A decision's trace: from the report that led to it to the first request that its instance served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from chiron.cluster import ClusterAdmin, LocalCluster
from chiron.v1 import cluster_pb2 as pb
from tests.support.chiron_command import chiron
from tests.support.otlp import ReceivedSpan, otlp_receiver

CHAIN = [
    ("chiron-controller", "chiron.decision"),
    ("chiron-controller", "chiron.decision.signal"),
    ("chiron-controller", "chiron.decision.write"),
    ("chiron-controller", "chiron.decision.sent"),
    ("chiron-agent", "chiron.agent.receive"),
    ("chiron-agent", "chiron.agent.start"),
    ("chiron-worker", "chiron.worker.load"),
    ("chiron-controller", "chiron.decision.ready"),
    ("chiron-controller", "chiron.decision.routed"),
    ("chiron-worker", "chiron.worker.first_request"),
]
"""In the order in which they end, but for the root, which is there first."""


async def test_a_placement_is_one_trace_up_to_the_first_request_that_it_served(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        async with LocalCluster(nodes=1, gpus=1, directory=tmp_path, environ=variables) as cluster:
            spec = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1)
            await cluster.apply([spec])
            await cluster.wait_ready()
            router = f"--router={cluster.router_addresses[0]}"
            answer = await chiron("generate", "toy", "hi", "--max-tokens=4", router, **variables)
            assert answer.status == 0, answer.stderr
            async with ClusterAdmin(cluster.controller_addresses) as admin:
                decisions = {one.action: one for one in await admin.decisions()}
            placed, applied = decisions["place"], decisions["apply_model"]
            wanted = {name for _, name in CHAIN}

            def complete(spans: Sequence[ReceivedSpan]) -> bool:
                return wanted <= {span.name for span in spans if span.trace_id == placed.trace_id}

            async with asyncio.timeout(20):
                await receiver.until(complete)
            explained = await chiron(
                "explain", placed.decision_id, f"--controller={cluster.controller_addresses[0]}"
            )
    assert placed.trace_id in explained.stdout

    trace = receiver.trace(placed.trace_id)
    found = {span.name: span for span in trace}
    root = found["chiron.decision"]
    assert [(found[name].service, name) for _, name in CHAIN] == CHAIN
    assert root.parent_id == ""
    assert {span.parent_id for span in trace if span is not root} == {root.span_id}
    ends = [found[name].end_ns for _, name in CHAIN[1:]]
    assert ends == sorted(ends)
    assert all(span.start_ns <= span.end_ns for span in trace)

    assert root.start_ns == found["chiron.decision.signal"].start_ns
    assert root.attributes["chiron.decision.id"] == placed.decision_id
    assert root.attributes["chiron.decision.action"] == "place"
    assert root.attributes["chiron.decision.number.desired"] == 1.0
    assert found["chiron.agent.start"].attributes["chiron.instance.id"] == placed.instance_id
    # It follows from the spec that was applied, whose trace is another one.
    assert [trace_id for trace_id, _ in root.links] == [applied.trace_id]
    # The request has a trace of its own.
    [(request, span_id)] = found["chiron.worker.first_request"].links
    assert request != placed.trace_id
    assert span_id in {span.span_id for span in receiver.trace(request)}
