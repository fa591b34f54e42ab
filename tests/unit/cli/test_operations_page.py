"""docs/operations.md says what the commands and the controller really do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from chiron.cli.main import app
from chiron.cluster import read_models
from chiron.v1 import cluster_pb2 as pb
from services.global_controller.specs import IN_PLACE, check_spec

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\$ chiron (.*)$", PAGE, re.MULTILINE) + re.findall(r"`chiron ([^`]*)`", PAGE)


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_every_command_is_one(line: str) -> None:
    arguments = shlex.split(line)
    command: click.Command = typer.main.get_command(app)
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments)


def test_the_table_of_fields_is_complete_and_true() -> None:
    rows = re.findall(r"^\| (`.*?) \| (in place|a roll): ", PAGE, re.MULTILINE)
    told = {field: how for fields, how in rows for field in re.findall(r"`(\w+)`", fields)}
    assert told == {
        field.name: "in place" if field.name in IN_PLACE else "a roll"
        for field in pb.ModelSpec.DESCRIPTOR.fields
        if field.name != "name"
    }


def test_the_examples_read(tmp_path: Path) -> None:
    [spec, scaled] = (read_example(tmp_path, one) for one in EXAMPLES)
    assert (spec.roll.hold_s, spec.roll.HasField("max_unavailable"), spec.roll.max_unavailable) == (
        30,
        True,
        0,
    )
    assert scaled.autoscaling.enabled
    assert [one.min_instances for one in scaled.autoscaling.scheduled_minimums] == [3]
    assert check_spec(spec) == check_spec(scaled) == []


def read_example(tmp_path: Path, example: str) -> pb.ModelSpec:
    file = tmp_path / "models.toml"
    file.write_text(example)
    [spec] = read_models(file)
    return spec
