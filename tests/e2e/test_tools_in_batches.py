"""Tool calls of a batch's items, through a whole cluster: parsed in their results, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chiron.client import Client, InvalidRequest, ItemOutput
from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb

TIME = {"type": "function", "function": {"name": "time"}}


def item(model: str, asked: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": asked}], "tools": [TIME], **options}


def spec(name: str, parser: str) -> pb.ModelSpec:
    model = pb.ModelSpec(name=name, engine="sim", gpus_per_instance=1, min_instances=1, tool_parser=parser)
    model.engine_args.update({"load_time_s": 0})
    return model


async def test_calls_of_items_are_parsed_where_the_model_has_a_parser(tmp_path: Path) -> None:
    async with LocalCluster(nodes=1, gpus=2, directory=tmp_path, batch_store="") as cluster:
        await cluster.apply([spec("able", "hermes"), spec("bare", "")])
        await cluster.wait_ready()
        async with Client(cluster.router_addresses) as client:
            asked = 'say Look.\ncall time {"zone": "Zürich"}'
            items = [
                item("able", asked, tool_choice="auto"),
                item("able", "Hello.", tool_choice="required"),
                item("able", asked, max_tokens=5),
                item("bare", asked, tool_choice="none", max_tokens=5),
            ]
            batch = await client.batch.submit(items, deadline_s=60)
            outputs = {
                result.index: result.output
                async for result in client.batch.results(batch.batch_id, follow=True)
            }
            found = []
            for index in range(4):
                output = outputs[index]
                assert isinstance(output, ItemOutput)
                found.append(output.choices[0])
            auto, required, *raw = found
            assert auto.parsed is not None
            assert auto.parsed.content == "Look.\n"
            (call,) = auto.parsed.tool_calls
            assert (call.name, call.arguments) == ("time", '{"zone": "Zürich"}')
            assert "<tool_call>" in auto.text
            assert required.parsed is not None
            assert [one.name for one in required.parsed.tool_calls] == ["time"]
            assert [one.parsed for one in raw] == [None, None]
            with pytest.raises(
                InvalidRequest, match=r"items\[0\]\.request\.chat\.tools.*'bare' has no tool parser"
            ):
                await client.batch.submit([item("bare", asked, tool_choice="auto")], deadline_s=60)
            with pytest.raises(InvalidRequest, match=r"chat\.tools: .* has no parser for tool calls"):
                await client.complete(**item("bare", asked, tool_choice="auto"))
