"""The evaluation runs what is not finished, goes on after failures, and finds the same however it is run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from chiron.config import ConfigError
from chiron.sim.paper import fingerprint
from chiron.sim.paper.commands import Commands
from chiron.sim.paper.evaluation import Evaluation, Request
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.plan import DoubledKeyError, Job
from chiron.sim.paper.results import Told, failures
from chiron.sim.paper.runner import KILLED, Ended, cause
from tests.support import paper_experiments as tiny
from tests.support.chiron_command import simulate


class Heard:
    """What was said of runs that ended."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.cached: list[str] = []

    def __call__(self, job: Job, ended: Ended) -> None:
        (self.cached if ended.cached else self.ran).append(job.case.key)


def evaluation(out: Path, *experiments: Experiment, jobs: int = 1, size: Size = Size.QUICK) -> Evaluation:
    return Evaluation(Request(out, experiments or (tiny.TINY,), size, None, jobs))


def ran(out: Path, *experiments: Experiment, jobs: int = 1) -> tuple[list[Told], dict[str, Any], Heard]:
    heard = Heard()
    found = evaluation(out, *experiments, jobs=jobs).run(heard)
    assert (found.unfinished, found.ended_by) == ("", None)
    return found.told, json.loads(found.file.read_text()), heard


KEYS = ["20.0,chiron,101", "20.0,chiron,102", "20.0,llumnix,101", "20.0,llumnix,102", "30.0,chiron,101"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which TINY has run, in one process."""
    out = tmp_path_factory.mktemp("paper") / "out"
    _, results, heard = ran(out)
    assert heard.ran == KEYS
    assert [case["key"] for case in results["experiments"][0]["cases"]] == KEYS
    return out


def test_a_second_run_makes_nothing_again(finished: Path) -> None:
    before = (finished / "results.json").read_bytes()

    told, _, heard = ran(finished)

    assert heard.ran == []
    assert heard.cached == KEYS
    assert (finished / "results.json").read_bytes() == before
    (told_tiny,) = told
    assert told_tiny.section is not None
    assert [each.cells[0] for each in told_tiny.section.tables[0].rows] == KEYS


def test_several_processes_find_the_same_as_one(finished: Path, tmp_path: Path) -> None:
    # The commands name the folder.
    out = tmp_path / "out"
    ran(out, jobs=2)

    ours = (out / "results.json").read_text().replace(str(out), str(finished))
    assert ours == (finished / "results.json").read_text()


def test_the_plan_counts_what_is_finished_and_what_comes_later(finished: Path, tmp_path: Path) -> None:
    new, old = evaluation(tmp_path).plan, evaluation(finished).plan

    assert [share.runs for share in new.shares] == [5]
    assert (new.shares[0].cached, old.shares[0].cached) == (0, 4)
    assert new.speed.calibrated_per_s is not None
    assert old.speed.calibrated_per_s is None
    # Traffic of 25 requests per second for 20 s, four times, and the later one as long as the mean.
    assert new.shares[0].requests == pytest.approx(5 * 25 * 20)
    assert new.expected_s == pytest.approx(5 * 25 * 20 / new.speed.calibrated_per_s, rel=1e-6)
    assert old.expected_s == 0


def test_other_code_runs_everything_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "code_digest", lambda: "another")

    assert evaluation(finished).plan.shares[0].cached == 0


def test_a_run_whose_file_is_damaged_is_made_again(finished: Path) -> None:
    one = tiny.case()
    file = finished / "cache" / f"{fingerprint.fingerprint(one)}.json"
    file.write_text(file.read_text()[:100])

    _, _, heard = ran(finished)

    assert heard.ran == [one.key]


def test_a_cause_names_our_files_from_the_package_on() -> None:
    there = f"failed ({inspect.getfile(cause)}:7) beside /elsewhere/of/yours.py"
    assert cause(ValueError(there)) == (
        "ValueError: failed (chiron/sim/paper/runner.py:7) beside /elsewhere/of/yours.py"
    )


def test_a_failure_is_told_with_its_cause_and_the_rest_goes_on(tmp_path: Path) -> None:
    bad = tiny.case(autoscaler="nowhere:Nothing")
    # No fleet at all is no failure: then there is nothing to report.
    none, good = tiny.cramped("fixed"), tiny.case(duration_s=5.0)
    told, results, heard = ran(tmp_path, tiny.failing(bad, none, good), tiny.SKIPPED)

    assert heard.ran == [bad.key, none.key, good.key]
    (failure,) = failures(told)
    assert failure.startswith(f"tiny {bad.key}: PartError: ")
    assert "nowhere" in failure
    section = told[0].section
    assert section is not None
    assert [each.cells[0] for each in section.tables[0].rows] == [good.key]
    assert bad.key in section.paragraphs[-2]
    cases = results["experiments"][0]["cases"]
    assert [case["figures"] is None for case in cases] == [True, True, False]
    assert cases[1]["missing"] == "no fixed fleet that the scenario allows attains"
    assert results["experiments"][1]["skipped"] == "nothing was given"
    # What failed is tried again; that there is no fleet is known.
    again = ran(tmp_path, tiny.failing(bad, none, good))[2]
    assert (again.ran, again.cached) == ([bad.key], [none.key, good.key])


def test_a_process_that_is_killed_takes_no_other_run_with_it(tmp_path: Path) -> None:
    deadly = dataclasses.replace(tiny.case(seed=102), measure=tiny.killed)
    leaving = dataclasses.replace(tiny.case(seed=103), measure=tiny.leaving)
    good = [tiny.case(seed=seed, duration_s=5.0) for seed in (101, 104)]

    told, _, heard = ran(tmp_path, tiny.failing(good[0], deadly, leaving, good[1]), jobs=2)

    assert sorted(failures(told)) == [
        f"tiny {deadly.key}: {KILLED}",
        f"tiny {leaving.key}: SystemExit: enough",
    ]
    assert sorted(heard.ran) == sorted(case.key for case in (*good, deadly, leaving))


def test_a_section_that_cannot_be_told_is_a_failure(finished: Path) -> None:
    def broken(_outcomes: object) -> Any:
        raise KeyError("figure")

    told, _, _ = ran(finished, dataclasses.replace(tiny.TINY, tell=broken))

    assert failures(told) == ["tiny: KeyError: 'figure'"]


def test_cases_that_nothing_tells_apart_are_a_defect(tmp_path: Path) -> None:
    twice = tiny.case(), dataclasses.replace(tiny.case(), scenario=tiny.lasting(21.0))

    with pytest.raises(DoubledKeyError, match=r"tiny: two cases are called 20\.0,chiron,101"):
        evaluation(tmp_path, tiny.failing(*twice))


def test_a_case_of_a_later_stage_is_found_by_its_key(finished: Path) -> None:
    heard = Heard()

    job = evaluation(finished).find("30.0,chiron,101", heard)

    assert (job.case.key, job.case.scenario.duration_s) == ("30.0,chiron,101", 30.0)
    assert heard.ran == []
    with pytest.raises(
        ConfigError, match=r"--case: experiment tiny has no case 'x'; it has 20\.0,chiron,101, "
    ):
        evaluation(finished).find("x", heard)


@pytest.mark.parametrize("policy", ["chiron", "llumnix", "fixed"])
def test_the_command_of_a_case_runs_it_again(tmp_path: Path, policy: str) -> None:
    more = {"parameters": {"out_below": 12.5}, "dispatcher": "least-expected-wait", "preemption": True}
    case = tiny.case(policy, duration_s=10.0, **(more if policy == "llumnix" else {}))
    figures = case.measure(case)
    program, group, *arguments = shlex.split(Commands(tmp_path, Size.QUICK, None).command(case))
    assert (program, group) == ("chiron", "sim")

    done = simulate(*arguments, "--json", "-")

    assert done.status == 0, done.stderr
    again = json.loads(done.stdout)
    run = again if policy != "fixed" else again["policies"]["fixed"]["seeds"]["101"]
    if policy == "fixed":
        assert again["policies"]["fixed"]["fleets"] == [figures["fleet"]]
    for name in ("gpu_hours", "slo_attainment", "throughput", "ttft_ms", "oracle_lb", "scenario", "policy"):
        assert run[name] == figures[name]


def test_a_case_that_no_scenario_file_can_say_is_run_by_its_key(tmp_path: Path) -> None:
    case = tiny.case(duration_s=5.0)
    (model,) = case.scenario.settings.models
    case = tiny.with_model(case, profile=model.profile.replace(load_s=1.0))
    commands = Commands(tmp_path, Size("quick", seeds=2, every_goal=True), Path("traces"))

    assert commands.scenario_file(case.scenario) is None
    assert shlex.split(commands.command(case))[2:] == [
        *("paper", "--out", str(tmp_path), "--only", "tiny", "--case", case.key),
        *("--quick", "--goals-full", "--seeds", "2", "--traces", "traces"),
    ]


def test_late_runs_come_after_those_of_all_experiments(tmp_path: Path) -> None:
    late, soon = tiny.case(seed=102, duration_s=5.0), tiny.case(seed=101, duration_s=5.0)
    first = tiny.failing(dataclasses.replace(late, late=True))
    second = dataclasses.replace(tiny.failing(soon), name="other")

    assert ran(tmp_path, first, second)[2].ran == [soon.key, late.key]


def test_who_ends_it_early_has_what_was_finished_and_is_told_the_rest(tmp_path: Path) -> None:
    heard = Heard()

    def ended(job: Job, what: Ended) -> None:
        heard(job, what)
        if len(heard.ran) == 2:
            raise KeyboardInterrupt

    found = evaluation(tmp_path, tiny.TINY, tiny.SKIPPED).run(ended)

    assert isinstance(found.ended_by, KeyboardInterrupt)
    assert found.unfinished == "tiny: 2 of 4 runs"
    section = found.told[0].section
    assert section is not None
    assert [each.cells[0] for each in section.tables[0].rows] == KEYS[:2]
    assert section.paragraphs[-2].startswith("Ended early")
    assert section.paragraphs[-1] == f"Without figures: {'; '.join(KEYS[2:4])}: was not run."
    # The same again makes the rest alone.
    assert ran(tmp_path)[2].ran == KEYS[2:]
