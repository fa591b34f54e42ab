"""The report as one HTML page that needs nothing else: style and plots are in it, and no script."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files

from chiron.sim.paper.drawing import inline_svg
from chiron.sim.paper.report import Part, Report, verdicts
from chiron.sim.paper.sections import Plot, Section, Table

TITLE = "Chiron: the paper's evaluation, simulated"
NONE = "–"
_NUMBER = re.compile(r"[-+−]?[\d.,]+\s*(%|×|s|ms|h)?( \[[^\]]*\])?")
"""A cell that reads as a figure, and stands at the right."""


def page(report: Report) -> str:
    """The page. Raises ConfigError without matplotlib."""
    style = files("chiron.sim.paper").joinpath("page.css").read_text(encoding="utf-8")
    entries = [("findings", "What is met, and what is not")]
    entries += [(part.name, part.section.title) for part in report.parts]
    contents = "".join(
        f'<li><a href="#{_attribute(name)}">{escape(title)}</a></li>' for name, title in entries
    )
    body = [
        f"<h1>{escape(TITLE)}</h1>",
        _facts(report),
        f"<nav><h2>Contents</h2><ol>{contents}</ol></nav>",
        _findings(report),
        *(_part(part) for part in report.parts),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(TITLE)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _facts(report: Report) -> str:
    lines = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in report.facts.lines()
    )
    failed = _list(report.facts.failed)
    note = f"<p>Runs without figures:</p>{failed}" if failed else ""
    return f"<div class='scroll'><table>{lines}</table></div>{note}"


def _findings(report: Report) -> str:
    rows = [
        f"<tr><td>{escape(found.claim)}</td><td>{escape(found.expected)}</td><td>{escape(found.found)}</td>"
        f"<td class='{found.verdict.replace(' ', '-')}'>{escape(found.verdict)}</td>"
        f"<td>{escape(found.why)}</td>"
        f"<td><a href='#{_attribute(part.name)}'>{escape(part.section.title)}</a></td></tr>"
        for part, found in report.findings
    ]
    head = _head(("expectation", "published, or goal", "found", "", "why, and what else", "experiment"))
    listed = f"<div class='scroll'><table>{head}<tbody>{''.join(rows)}</tbody></table></div>" if rows else ""
    return (
        "<section id='findings'><h2>What is met, and what is not</h2>"
        f"<p>{escape(verdicts(report.findings))}</p>{listed}</section>"
    )


def _part(part: Part) -> str:
    section: Section = part.section
    shows = f"<p class='shows'>{escape(part.shows)}</p>" if part.shows else ""
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in section.paragraphs)
    tables = "".join(_table(table) for table in section.tables)
    plots = "".join(_figure(plot) for plot in section.plots)
    plots = f"<div class='plots'>{plots}</div>" if plots else ""
    return (
        f"<section id='{_attribute(part.name)}'><h2>{escape(section.title)}</h2>"
        f"{shows}{paragraphs}{tables}{plots}</section>"
    )


def _table(table: Table) -> str:
    commands = any(row.command for row in table.rows)
    columns = (*table.columns, "again by") if commands else table.columns
    rows = []
    for row in table.rows:
        cells = "".join(_cell(cell) for cell in row.cells)
        command = f"<td class='command'><code>{escape(row.command)}</code></td>" if commands else ""
        rows.append(f"<tr>{cells}{command}</tr>")
    return (
        f"<div class='scroll'><table><caption>{escape(table.caption)}</caption>{_head(columns)}"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(columns: Iterable[str]) -> str:
    return f"<thead><tr>{''.join(f'<th scope=col>{escape(name)}</th>' for name in columns)}</tr></thead>"


def _cell(cell: str | None) -> str:
    if cell is None:
        return f"<td class='number'>{NONE}</td>"
    kind = " class='number'" if _NUMBER.fullmatch(cell) else ""
    return f"<td{kind}>{escape(cell)}</td>"


def _figure(plot: Plot) -> str:
    return f"<figure role='img' aria-label='{_attribute(plot.title)}'>{inline_svg(plot)}</figure>"


def _list(texts: Iterable[str]) -> str:
    entries = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{entries}</ul>" if entries else ""


def _attribute(text: str) -> str:
    return escape(text, quote=True)
