"""The report as a page, as Markdown and as plots: all of it is there, and no name is markup by accident."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from chiron.sim.paper.drawing import inline_svg, save
from chiron.sim.paper.facts import Facts, code, gathered
from chiron.sim.paper.markdown import markdown
from chiron.sim.paper.page import page
from chiron.sim.paper.report import Part, Report, write_report
from chiron.sim.paper.sections import Axis, Finding, Plot, Point, Section, Series, row, table

HOSTILE = "<script>alert('x')</script> & \"$x^2$\" | `y`"
FACTS = Facts(
    command="chiron sim paper --quick",
    size="quick",
    code="commit abc",
    seeds=(101, 102),
    machine="2 cores",
    at="2026-01-02 03:04 UTC",
    wall_s=90.0,
    runs=12,
    cached=5,
    failed=("rates,llumnix,101: <none attains>",),
)
VOID = {"meta", "br", "hr", "link", "img", "path", "use", "rect"}


def plot(name: str = "a-plot", kind: str = "lines", **changes: object) -> Plot:
    series = (
        Series(HOSTILE, (Point(1, 90.0, 80.0, 95.0), Point(2, None), Point(3, 70.0))),
        Series("nothing came", (Point(1, None),)),
        Series("empty", ()),
    )
    given = {"x": Axis(HOSTILE), "y": Axis("%", least=0.0, most=100.0), "series": series, **changes}
    return Plot(name, HOSTILE, kind=kind, **given)  # type: ignore[arg-type]


SECTION = Section(
    HOSTILE,
    (HOSTILE,),
    (table(HOSTILE, [HOSTILE, "GPU-hours"], [row(HOSTILE, "1,234.50", command=HOSTILE), row("none", None)]),),
    (plot(), plot("b-plot", "bars")),
    (
        Finding(HOSTILE, "up to 90 %", "+20 points", "not reachable", "ceiling 30 points"),
        Finding("GPUs", "70 % fewer", "71 % fewer", "met"),
    ),
)
REPORT = Report(FACTS, (Part("part-a", SECTION, HOSTILE), Part("part-b", Section("Second"))))


class Reader(HTMLParser):
    """Collects what a browser would see; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def text() -> str:
    return page(REPORT)


@pytest.fixture(scope="module")
def read(text: str) -> Reader:
    return Reader(text)


def test_the_page_shows_names_as_they_are_and_runs_none_of_them(read: Reader) -> None:
    assert not [tag for tag, _ in read.tags if tag in ("script", "iframe", "object", "link", "img")]
    assert not [key for _, attributes in read.tags for key in attributes if key.startswith("on")]
    # Title, what it shows, paragraph, caption, heading, cell, command, finding, contents, link to the part.
    assert read.texts.count(HOSTILE) >= 10


def test_the_page_needs_nothing_from_outside(read: Reader, text: str) -> None:
    pointing = [
        value or ""
        for _, attributes in read.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href", "action", "data")
    ]
    assert pointing
    assert all(value.startswith("#") for value in pointing)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_links_and_clips_of_the_page_lead_to_ids_that_are_there_once(read: Reader, text: str) -> None:
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    wanted = {
        value[1:]
        for _, attributes in read.tags
        for key, value in attributes.items()
        if key in ("href", "xlink:href") and value
    }
    wanted |= set(re.findall(r"url\(#([^)]*)\)", text))

    assert len(ids) == len(set(ids))
    assert wanted <= set(ids)
    assert {"findings", "part-a", "part-b"} <= wanted


def test_the_page_is_for_light_dark_and_paper(text: str) -> None:
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "currentColor" in text


def test_every_row_stands_beside_its_command_and_a_missing_figure_is_a_dash(read: Reader) -> None:
    at = read.texts.index("1,234.50")

    assert HOSTILE in read.texts[at + 1 :]
    assert "–" in read.texts[at + 1 :]


def test_verdicts_come_first_and_are_counted(text: str) -> None:
    assert "Of 2 expectations: 1 not reachable, 1 met." in text
    assert text.index("ceiling 30 points") < text.index("id='part-a'")
    assert "No expectation was tested." in page(Report(FACTS, ()))


def test_a_run_says_what_made_it_and_what_it_lacks(read: Reader) -> None:
    told = " ".join(read.texts)

    for fact in (
        "chiron sim paper --quick",
        "commit abc",
        "101, 102",
        "2 cores",
        "1.5 min for 12 simulated runs",
    ):
        assert fact in told
    assert "of which 5 came from earlier ones" in told
    assert "rates,llumnix,101: <none attains>" in told


def test_markdown_shows_names_as_they_are_in_tables_that_hold() -> None:
    lines = markdown(REPORT).splitlines()
    rows = [line for line in lines if line.startswith("|")]

    assert rows
    for line in rows:
        # Bars that are not escaped are those between cells: as many as in the heading above.
        assert len(re.findall(r"(?<!\\)\|", line)) in (3, 6)
    assert not [line for line in lines if "<script>" in line and not line.startswith("$ ")]
    assert f"$ {HOSTILE}" in lines
    assert "Of 2 expectations: 1 not reachable, 1 met." in lines


@pytest.mark.parametrize("kind", ["steps", "dots"])
def test_a_plot_of_any_kind_draws_what_there_is(kind: str) -> None:
    inline = ElementTree.fromstring(inline_svg(plot(kind=kind, reference=99.0, diagonal=kind == "dots")))

    assert any(HOSTILE in (each.text or "") for each in inline.iter())


def test_the_same_plot_gives_the_same_files(tmp_path: Path) -> None:
    first, second = save(plot(), tmp_path / "1"), save(plot(), tmp_path / "2")

    assert [file.name for file in first] == ["a-plot.png", "a-plot.svg"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    ElementTree.parse(first[1])


def test_a_plot_without_any_figure_says_so() -> None:
    assert "no figures" in inline_svg(plot(series=(Series("a", (Point(1, None),)),)))
    assert "no figures" in inline_svg(plot(series=()))


def test_a_plot_with_a_figure_does_not(text: str) -> None:
    assert "no figures" not in text


def test_writing_a_report_leaves_a_page_plots_and_what_the_documentation_shows(
    tmp_path: Path, text: str
) -> None:
    docs = tmp_path / "docs" / "reproduction.md"

    files = write_report(REPORT, tmp_path / "out", docs)

    assert [file.name for file in files] == [
        "report.html",
        *("a-plot.png", "a-plot.svg", "b-plot.png", "b-plot.svg"),
        "reproduction.md",
    ]
    assert files[0].read_text(encoding="utf-8") == text
    assert docs.read_text(encoding="utf-8") == markdown(REPORT)


def test_facts_are_of_this_machine_and_this_code() -> None:
    facts = gathered("chiron sim paper", "full", [103, 101, 103], 60.0, 3)

    assert facts.seeds == (101, 103)
    assert re.fullmatch(r"commit [0-9a-f]{40}( with changes)?|chiron-serving \S+", facts.code)
    assert facts.code == code()
    assert "Python 3" in facts.machine
