"""Where the findings of the `chiron sim` commands go: stdout, a file of figures, a folder of plots."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from chiron.cli.runner import CliError
from chiron.cli.sim_options import OutputOptions


def check_output(output: OutputOptions) -> None:
    """Raises CliError before a long run when its findings could not be written, ConfigError for plots that
    cannot be drawn."""
    file = output.json_file
    if file is not None and not output.json_on_stdout:
        if file.is_dir():
            raise CliError(f"cannot write {file}: Is a directory")
        if not file.parent.is_dir():
            raise CliError(f"cannot write {file}: no such folder as {file.parent}")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise CliError(f"cannot write {file}: Permission denied")
    if output.plots is not None:
        from chiron.sim.plots import check_drawing

        check_drawing()
        try:
            output.plots.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=output.plots):
                pass
        except OSError as error:
            raise CliError(f"cannot write plots to {output.plots}: {error.strerror}") from error


@contextmanager
def stdout_for_figures(output: OutputOptions) -> Iterator[None]:
    """What is printed in the block, by a policy for example, goes to stderr when the figures take stdout.

    So does what processes print that are started in it.
    """
    if not output.json_on_stdout:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 1)
        os.close(kept)


def write_findings(
    output: OutputOptions,
    figures: Mapping[str, Any],
    show: Callable[[], None],
    draw: Callable[[Path], list[Path]],
) -> None:
    """Shows the tables, writes the figures and draws the plots, as far as they are asked for.

    The tables come first and a failure to write the figures keeps no plot back, so that no run is lost.

    Args:
        output: what is asked for.
        figures: for the file of figures.
        show: prints the tables.
        draw: draws into a folder, and tells the files.

    Raises:
        CliError: figures or plots cannot be written.
    """
    if not output.json_on_stdout:
        show()
    try:
        _write_json(output, figures)
    finally:
        if output.plots is not None:
            try:
                files = draw(output.plots)
            except OSError as error:
                told = f"{error.filename or output.plots}: {error.strerror or error}"
                raise CliError(f"cannot write plots: {told}") from error
            for file in files:
                print(f"wrote {file}", file=sys.stderr)


def _write_json(output: OutputOptions, figures: Mapping[str, Any]) -> None:
    if output.json_file is None:
        return
    text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    if output.json_on_stdout:
        sys.stdout.write(text)
        return
    try:
        output.json_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot write {output.json_file}: {error.strerror}") from error
