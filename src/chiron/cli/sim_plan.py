"""`chiron sim plan`: how many GPUs a workload needs."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from chiron.cli.sim_options import OutputOptions, PlanOptions, PolicyOptions, TraceOptions
from chiron.cli.sim_output import check_output, stdout_for_figures, write_findings
from chiron.cli.sim_recorded import (
    FORMAT,
    RecordedOptions,
    controller_config,
    profiles_of,
    read_options,
    recorded_scenario,
    report_recording,
)
from chiron.cli.sim_telling import progress_bar, report_reading, wide_console
from chiron.cli.sim_traces import ReplayOptions, naming_options, replayed_scenario
from chiron.cli.sim_work import choice_of
from chiron.config import ConfigError
from chiron.sim.planning.crew import Crew
from chiron.sim.planning.knobs import given_knobs, knobs_of
from chiron.sim.planning.mix import parse_candidates
from chiron.sim.planning.need import Terms
from chiron.sim.planning.plan import Question, plan
from chiron.sim.planning.recorded import freed, promised, without_slo
from chiron.sim.planning.shown import plan_json, plan_tables
from chiron.sim.planning.source import Slo, Source
from chiron.sim.planning.told import sentences
from chiron.sim.planning.told_tuning import settings_to_paste, tuned_json, tuned_sentences, tuned_table
from chiron.sim.planning.tune import FIRST_FRESH, tune
from chiron.sim.policies import PolicyChoice
from chiron.sim.recorded.settings import policy_of
from chiron.sim.scenario import Scenario, read_scenario
from chiron.sim.settings import LARGEST
from chiron.sim.variations import vary

_TTFT_MS, _ITL_MS = 10_000.0, 200.0
"""SLOs of a trace, for which nothing says any."""


def run_plan(
    workload: Path,
    trace_format: str | None,
    asked: PlanOptions,
    trace: TraceOptions,
    policy: PolicyOptions,
    output: OutputOptions,
    varied: str | None = None,
) -> None:
    """`chiron sim plan`."""
    check_output(output)
    with naming_options(), stdout_for_figures(output):
        source, own = _source(workload, trace_format, asked, trace, policy, varied)
        if asked.warmup is not None:
            source = source.counting_from(asked.warmup)
        chosen = choice_of(source.scenario, own, policy)
        question = _question(asked, source.scenario)
        report_reading(source.at(question.terms.seeds[0])[1], source.scenario)
        with (
            progress_bar(output, "simulations") as told,
            Crew(asked.jobs, lambda done, total: told(0.0, done, total)) as crew,
        ):
            if asked.tune:
                findings = _tuned(source, chosen, question, asked, crew)
            else:
                findings = _planned(source, chosen, question, crew)
    write_findings(output, findings.figures, findings.show, findings.draw)


@dataclass(frozen=True, slots=True)
class _Findings:
    figures: Mapping[str, Any]
    answer: Sequence[str]
    """Sentences, and what is to be pasted."""
    tables: Sequence[Table]
    draw: Callable[[Path], list[Path]]

    def show(self) -> None:
        print("\n".join(self.answer), end="\n\n")
        console = wide_console()
        for table in self.tables:
            console.print(table)


def _planned(source: Source, policy: PolicyChoice, question: Question, crew: Crew) -> _Findings:
    found = plan(source, policy, question, crew)

    def draw(folder: Path) -> list[Path]:
        from chiron.sim.planning.plots import plot_plan

        return plot_plan(found, folder)

    return _Findings(plan_json(found), sentences(found), plan_tables(found), draw)


def _tuned(
    source: Source, policy: PolicyChoice, question: Question, asked: PlanOptions, crew: Crew
) -> _Findings:
    for option, values in (("growth", question.growth), ("slo-ttft and --slo-itl", question.slos)):
        if len(values) > 1:
            raise ConfigError(f"--{option}: --tune asks about one value each")
    if asked.candidates or asked.budgets:
        raise ConfigError(f"--{'candidates' if asked.candidates else 'budgets'}: does not go with --tune")
    source = source.grown(question.growth[0]).promising(question.slos[0])
    settings = source.scenario.settings
    knobs = given_knobs(asked.knob, policy, settings) if asked.knob else knobs_of(policy, settings)
    found = tune(source, policy, question.terms, knobs, crew)

    def draw(folder: Path) -> list[Path]:
        from chiron.sim.planning.plots import plot_tuned

        return plot_tuned(found, folder)

    answer = [*tuned_sentences(found), *(["", paste] if (paste := settings_to_paste(found)) else [])]
    return _Findings(tuned_json(found), answer, [tuned_table(found)], draw)


def _source(
    workload: Path,
    trace_format: str | None,
    asked: PlanOptions,
    trace: TraceOptions,
    policy: PolicyOptions,
    varied: str | None,
) -> tuple[Source, PolicyChoice]:
    """The workload, and who serves it unless the command line says otherwise. Raises ConfigError."""
    if trace_format is None:
        for field in dataclasses.fields(trace):
            if getattr(trace, field.name) != field.default:
                option = field.name.replace("_", "-")
                raise ConfigError(f"--{option}: goes with --format, for a recorded trace")
        scenario = read_scenario(workload)
        return Source(scenario if varied is None else vary(scenario, varied)), scenario.policy
    if varied is not None:
        raise ConfigError("--vary: goes with a scenario, not with a recorded trace")
    if trace_format == FORMAT:
        return _recorded(RecordedOptions.of(workload, trace), policy, bool(asked.slo_ttft or asked.slo_itl))
    scenario = replayed_scenario(ReplayOptions.of(workload, trace_format, trace, _TTFT_MS, _ITL_MS))
    return Source(scenario), scenario.policy


def _recorded(
    options: RecordedOptions, policy: PolicyOptions, slos_given: bool
) -> tuple[Source, PolicyChoice]:
    """A router's recording, on the cluster that served it, whose models are all autoscaled now."""
    recording, cluster = read_options(options)
    config = controller_config(options.config)
    scenario, reading = recorded_scenario(
        options.recording, recording, cluster, profiles_of(options.profile), 0, config
    )
    report_recording(recording)
    models = cluster.first.models
    scenario = freed(scenario, [model.spec.name for model in models if model.spec.autoscaling.enabled])
    scenario, told = promised(scenario, recording.replayed)
    for line in told:
        print(f"warning: {line}", file=sys.stderr)
    if (none := without_slo(scenario, recording.replayed)) and not slos_given:
        raise ConfigError(
            f"--slo-ttft: nothing is promised to requests to {', '.join(none)}: give this or --slo-itl"
        )
    own = policy_of(cluster, policy.local, config.autoscaler.chiron)
    return Source(scenario, reading), dataclasses.replace(own, name="chiron")


def _question(asked: PlanOptions, scenario: Scenario) -> Question:
    """Raises ConfigError naming the option."""
    if not 0 < asked.goal <= 1:
        raise ConfigError(f"--goal: must be above 0 and at most 1, not {asked.goal:g}")
    growth = _numbers("growth", asked.growth)
    ttft = [None] if asked.slo_ttft is None else _numbers("slo-ttft", asked.slo_ttft)
    itl = [None] if asked.slo_itl is None else _numbers("slo-itl", asked.slo_itl)
    budgets = _numbers("budgets", asked.budgets) if asked.budgets else []
    if any(budget != int(budget) for budget in budgets):
        raise ConfigError(f"--budgets: must be whole numbers, not {asked.budgets}")
    if asked.knob and not asked.tune:
        raise ConfigError("--knob: goes with --tune")
    own = FIRST_FRESH if asked.tune else scenario.settings.seed
    first = own if asked.first_seed is None else asked.first_seed
    seeds = asked.seeds or (5 if asked.tune else 3)
    return Question(
        Terms(tuple(range(first, first + seeds)), asked.goal, asked.max_gpus or 0),
        tuple(growth),
        tuple(
            Slo(*(None if value is None else value / 1e3 for value in pair))
            for pair in itertools.product(ttft, itl)
        ),
        tuple(int(budget) for budget in budgets),
        parse_candidates(asked.candidates, scenario) if asked.candidates else {},
    )


def _numbers(option: str, text: str) -> list[float]:
    """Numbers above 0, separated by commas. Raises ConfigError."""
    found: list[float] = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            raise ConfigError(f"--{option}: must be numbers separated by commas, not {text!r}") from None
        if not 0 < number <= LARGEST:
            raise ConfigError(f"--{option}: must be above 0, not {part.strip()}")
        if number in found:
            raise ConfigError(f"--{option}: {part.strip()} is there twice")
        found.append(number)
    return found
