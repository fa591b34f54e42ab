"""`chiron models`: apply, list, delete."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from chiron.cli.status import models_table, to_json
from chiron.cluster import ClusterAdmin, read_models
from chiron.v1 import cluster_pb2 as pb


async def apply(controller: str, files: Sequence[Path]) -> int:
    """Applies every model of the files; nothing is applied when one of the files is wrong."""
    specs = [spec for file in files for spec in read_models(file)]
    async with ClusterAdmin(controller) as admin:
        for spec in specs:
            response = await admin.apply_model(spec)
            what = "applied" if response.changed else "unchanged"
            print(f"{spec.name}: {what} (spec version {response.model.spec_version})")
    return 0


async def list_models(controller: str, *, as_json: bool) -> int:
    """Prints every model with its spec version and instances."""
    async with ClusterAdmin(controller) as admin:
        models = await admin.list_models()
    if as_json:
        print(to_json(pb.ListModelsResponse(models=models)))
    else:
        console = Console()
        wide = console if console.is_terminal else Console(file=sys.stdout, width=1000)
        wide.print(models_table(models), soft_wrap=not console.is_terminal)
    return 0


async def delete(controller: str, names: Sequence[str]) -> int:
    """Deletes the models in the order given."""
    async with ClusterAdmin(controller) as admin:
        for name in names:
            await admin.delete_model(name)
            print(f"{name}: deleted")
    return 0
