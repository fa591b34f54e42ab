"""`chiron models`: apply, list, roll back, show the versions, delete."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from chiron.cli.runner import CliError
from chiron.cli.status import models_table, to_json
from chiron.cli.versions import versions_table
from chiron.cluster import AdminError, ClusterAdmin, read_model_files
from chiron.v1 import cluster_pb2 as pb


async def apply(controller: str, files: Sequence[Path], *, rollback_on_failure: bool = False) -> int:
    """Applies every model of the files; nothing is applied when one of the files is wrong.

    A model that the controller refuses does not keep the others from being applied. Raises CliError that says
    which were applied and which not.
    """
    specs = read_model_files(files)
    applied: list[str] = []
    refusals: list[AdminError] = []
    async with ClusterAdmin(controller) as admin:
        for spec in specs:
            try:
                response = await admin.apply_model(spec, rollback_on_failure=rollback_on_failure)
            except AdminError as error:
                refusals.append(error)
                if error.reason:
                    continue
                # Not about this model: the next call would fail like this one.
                break
            applied.append(spec.name)
            what = "applied" if response.changed else "unchanged"
            print(f"{spec.name}: {what} (spec version {response.model.spec_version})")
    if refusals:
        text = "; ".join(map(str, refusals))
        if len(specs) > 1:
            others = [spec.name for spec in specs if spec.name not in applied]
            text += f" (applied: {', '.join(applied) or 'none'}; not applied: {', '.join(others)})"
        raise CliError(text)
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


async def rollback(controller: str, name: str, to_version: int) -> int:
    """Returns to an earlier version of a model's spec."""
    async with ClusterAdmin(controller) as admin:
        model = await admin.rollback_model(name, to_version)
    left = model.roll.remaining
    print(f"{name}: spec version {model.spec_version}, {left} instance{'' if left == 1 else 's'} to replace")
    return 0


async def history(controller: str, name: str, *, as_json: bool) -> int:
    """Prints the versions of a model's spec that are kept, the newest first."""
    async with ClusterAdmin(controller) as admin:
        versions = await admin.versions(name)
    if as_json:
        print(to_json(pb.ListModelVersionsResponse(versions=versions)))
    else:
        console = Console()
        wide = console if console.is_terminal else Console(file=sys.stdout, width=1000)
        wide.print(versions_table(versions), soft_wrap=not console.is_terminal)
    return 0


async def delete(controller: str, names: Sequence[str]) -> int:
    """Deletes the models in the order given."""
    async with ClusterAdmin(controller) as admin:
        for name in names:
            await admin.delete_model(name)
            print(f"{name}: deleted")
    return 0
