"""A run is taken for made before only if nothing has changed that its figures depend on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from chiron.policy.fleet import ChironSettings
from chiron.sim.paper.cache import write_whole
from chiron.sim.paper.case import Case
from chiron.sim.paper.fingerprint import digest_of_sources, fingerprint
from chiron.sim.policies import PolicyChoice
from chiron.sim.sources import Replay
from tests.support import paper_experiments as tiny

BASE = tiny.case()


def changed(case: Case, **settings: object) -> Case:
    scenario = dataclasses.replace(
        case.scenario, settings=dataclasses.replace(case.scenario.settings, **settings)
    )
    return dataclasses.replace(case, scenario=scenario)


def with_model(**fields: object) -> Case:
    return tiny.with_model(BASE, **fields)


PROFILE = BASE.scenario.settings.models[0].profile
OTHERS = {
    "seed": dataclasses.replace(BASE, seed=102),
    "policy": tiny.case("llumnix"),
    "part": tiny.case(local="static"),
    "autoscaler's settings": tiny.case(settings=ChironSettings(min_hold_s=61.0)),
    "traffic": tiny.case(duration_s=21.0),
    "SLO": with_model(ttft_slo_s=2.0),
    "step times": with_model(profile=PROFILE.replace(step_time_ms=((1, 2.02), (1001, 12.01)))),
    "initial fleet": with_model(initial={}),
    "telemetry": changed(BASE, step_noise=0.1),
    "timeline": dataclasses.replace(BASE, timeline=True),
    "measure": dataclasses.replace(BASE, measure=tiny.killed),
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_changes_the_figures_changes_the_fingerprint(name: str) -> None:
    assert fingerprint(OTHERS[name]) != fingerprint(BASE)


def test_the_same_run_in_two_experiments_is_one() -> None:
    other = dataclasses.replace(BASE, experiment="other", labels={"row": "first"})
    # A case replaces both.
    scenario = dataclasses.replace(BASE.scenario.with_seed(9), policy=PolicyChoice("llumnix"))

    assert fingerprint(other) == fingerprint(BASE)
    assert fingerprint(dataclasses.replace(BASE, scenario=scenario)) == fingerprint(BASE)


def test_a_measure_of_its_own_may_depend_on_labels() -> None:
    one, two = (
        dataclasses.replace(BASE, measure=tiny.killed, labels={"requests": requests}) for requests in (1, 2)
    )

    assert fingerprint(one) != fingerprint(two)


def test_a_trace_counts_by_its_content(tmp_path: Path) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    rows = [f"2023-11-16 18:17:0{second}.0000000,10,{second}\n" for second in range(4)]
    found = []
    for name, text in (("a.csv", rows), ("b.csv", rows), ("c.csv", rows[1:])):
        (tmp_path / name).write_text(head + "".join(text))
        replay = Replay(model="toy", file=str(tmp_path / name), format="azure")
        scenario = dataclasses.replace(BASE.scenario, replays=(replay,), traffic=())
        found.append(fingerprint(dataclasses.replace(BASE, scenario=scenario)))

    assert found[0] == found[1]
    assert found[0] != found[2]


def test_code_counts_by_its_content_and_its_place(tmp_path: Path) -> None:
    (tmp_path / "a" / "paper").mkdir(parents=True)
    (tmp_path / "a" / "one.py").write_text("x = 1\n")
    (tmp_path / "a" / "paper" / "two.py").write_text("y = 1\n")

    def digest(more: str = "2.0") -> str:
        return digest_of_sources({"a": tmp_path / "a"}, tmp_path / "a" / "paper", more)

    first = digest()
    (tmp_path / "a" / "paper" / "two.py").write_text("y = 2\n")
    assert digest() == first
    assert digest("2.1") != first
    (tmp_path / "a" / "one.py").write_text("x = 2\n")
    second = digest()
    assert second != first
    (tmp_path / "a" / "one.py").rename(tmp_path / "a" / "other.py")
    assert digest() not in (first, second)


def test_a_file_that_cannot_be_written_to_its_end_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    write_whole(file, "whole")

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "half")

    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]
