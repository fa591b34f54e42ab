"""The report of one run of the evaluation, and how it comes to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chiron.sim.paper.cache import write_whole
from chiron.sim.paper.facts import Facts
from chiron.sim.paper.sections import Finding, Section


@dataclass(frozen=True, slots=True)
class Part:
    """One section in its place."""

    name: str
    """The experiment's name: letters, digits and hyphens, once in the report."""
    section: Section
    shows: str = ""
    """What it is there to show."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run of the evaluation tells, in the order in which it is read."""

    facts: Facts
    parts: tuple[Part, ...]

    @property
    def findings(self) -> tuple[tuple[Part, Finding], ...]:
        """Every expectation with the part that it comes from."""
        return tuple((part, finding) for part in self.parts for finding in part.section.findings)


def write_report(report: Report, folder: Path, docs: Path | None = None) -> list[Path]:
    """Writes report.html, and plots/NAME.png and .svg, into the folder.

    Args:
        report: what is told.
        folder: made where it is missing.
        docs: also write the report as Markdown there, without plots.

    Returns:
        The files, the page first.

    Raises:
        ConfigError: without matplotlib.
        OSError: a file cannot be written.
    """
    # Drawing takes a second to import, and what only wants the data need not wait for it.
    from chiron.sim.paper.drawing import save
    from chiron.sim.paper.markdown import markdown
    from chiron.sim.paper.page import page

    folder.mkdir(parents=True, exist_ok=True)
    # Text comes first: drawing takes half a minute, for which not everybody who ends a run waits.
    if docs is not None:
        docs.parent.mkdir(parents=True, exist_ok=True)
        write_whole(docs, markdown(report))
    files = [folder / "report.html"]
    write_whole(files[0], page(report))
    for part in report.parts:
        for plot in part.section.plots:
            files += save(plot, folder / "plots")
    return files if docs is None else [*files, docs]


def verdicts(findings: Sequence[tuple[Part, Finding]]) -> str:
    """How many expectations came to what, in a sentence."""
    words = [finding.verdict for _, finding in findings]
    counts = [f"{words.count(verdict)} {verdict}" for verdict in dict.fromkeys(words)]
    return f"Of {len(words)} expectations: {', '.join(counts)}." if words else "No expectation was tested."
