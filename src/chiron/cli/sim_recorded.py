"""`chiron sim replay --format chiron`: what routers have recorded, live beside simulated."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from chiron.cli.sim_options import PolicyOptions, RunOutputOptions, TraceOptions
from chiron.cli.sim_output import check_output, stdout_for_figures, write_findings
from chiron.cli.sim_telling import progress_bar, report_reading, wide_console
from chiron.config import ConfigError, load_config
from chiron.sim.policies import PolicyChoice
from chiron.sim.recorded.beside import Beside, beside
from chiron.sim.recorded.cluster import LiveCluster, read_cluster
from chiron.sim.recorded.requests import Recording, read_recording
from chiron.sim.recorded.settings import policy_of, reading_of, settings_of, unhosted
from chiron.sim.recorded.tables import beside_tables
from chiron.sim.recorded.times import live_times
from chiron.sim.runs import Run, run
from chiron.sim.scenario import Reading, Scenario
from chiron.sim.settings import SimSettings
from chiron.sim.trace_formats import TraceError
from services.global_controller.config import ControllerConfig

FORMAT = "chiron"
_TAIL_S = 3600.0


@dataclass(frozen=True, slots=True)
class RecordedOptions:
    """Which recording is simulated on what."""

    recording: Path
    cluster: Path | None
    live_decisions: Path | None
    config: Path | None
    profile: str
    strict: bool

    @classmethod
    def of(cls, recording: Path, given: TraceOptions) -> RecordedOptions:
        """What the command line says of a recording."""
        return cls(
            recording, given.cluster, given.live_decisions, given.config, given.profile or "", given.strict
        )


def replay_recorded(
    options: RecordedOptions, chosen: PolicyOptions, seed: int | None, output: RunOutputOptions
) -> None:
    """Simulates the recording on the cluster that served it, and shows both."""
    from chiron.cli.sim_work import choice_of, decision_log

    check_output(output)
    with stdout_for_figures(output), ExitStack() as stack:
        recording, cluster = read_options(options)
        config = controller_config(options.config)
        scenario, reading = recorded_scenario(
            options.recording, recording, cluster, profiles_of(options.profile), seed or 0, config
        )
        mine = policy_of(cluster, chosen.local, config.autoscaler.chiron)
        policy = choice_of(scenario, mine, chosen)
        report_reading(reading, scenario)
        report_recording(recording)
        told = stack.enter_context(progress_bar(output, "requests"))
        log = stack.enter_context(decision_log(output))
        done, found = simulate_recorded(scenario, reading, policy, recording, cluster, progress=told, log=log)
        stack.close()
    title = f"{scenario.name} · {policy.label}"
    write_findings(
        output,
        {**found.to_json(), "simulation": done.to_json()},
        lambda: wide_console().print(beside_tables(found, title)),
        lambda folder: _plots(done, folder),
    )


def controller_config(file: Path | None) -> ControllerConfig:
    """The configuration of the controller that led; None: the defaults. Raises ConfigError."""
    return load_config(ControllerConfig, "controller", file=file, environ={})


def recorded_scenario(
    file: Path,
    recording: Recording,
    cluster: LiveCluster,
    profiles: Mapping[str, str],
    seed: int,
    config: ControllerConfig,
) -> tuple[Scenario, Reading]:
    """The cluster and its requests, ready to be simulated. Raises ConfigError.

    recording: without what the cluster cannot host.
    """
    live = live_times(
        cluster,
        recording.requests,
        zero_of(recording),
        presumed_load_s=config.presumed_load_time_s,
        drain_notice_s=config.drain_notice_s,
    )
    settings = settings_of(cluster, profiles, seed, live, asked={one.model for one in recording.replayed})
    reading = reading_of(recording.replayed, settings, zero_of(recording))
    last_s = float(reading.workload.arrival_s[-1])
    return Scenario(file, f"recording {file.name}", "", last_s, _ending(settings, last_s)), reading


def simulate_recorded(
    scenario: Scenario,
    reading: Reading,
    policy: PolicyChoice,
    recording: Recording,
    cluster: LiveCluster,
    **watching: object,
) -> tuple[Run, Beside]:
    """Runs it; `watching` as of `chiron.sim.runs.run`."""
    done = run(scenario, policy, reading=reading, **watching)  # type: ignore[arg-type]
    return done, beside(recording.requests, recording.replayed, done.result, cluster, zero_of(recording))


def zero_of(recording: Recording) -> float:
    """The simulation's zero by the wall clock: when the recording began, or the first request came later."""
    return max(recording.started, recording.requests[0].arrived)


def profiles_of(text: str) -> Mapping[str, str]:
    """MODEL=PROFILE, separated by commas. Raises ConfigError."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        model, equals, name = part.partition("=")
        if not (model and equals and name):
            raise ConfigError(f"--profile: of a recording as MODEL=PROFILE, not {part!r}")
        found[model] = name
    return found


def _ending(settings: SimSettings, last_s: float) -> SimSettings:
    """Without deadlines a simulation has no other end than that all are served."""
    return dataclasses.replace(settings, horizon_s=last_s + _TAIL_S)


def read_options(options: RecordedOptions) -> tuple[Recording, LiveCluster]:
    """The recording, without what no node can host, and the cluster. Raises ConfigError."""
    if options.cluster is None:
        raise ConfigError(
            "--cluster: needs the cluster's snapshots, as `chiron status --watch --json` printed them"
        )
    try:
        recording = read_recording(options.recording, strict=options.strict)
    except TraceError as error:
        raise ConfigError(str(error)) from error
    cluster = read_cluster(options.cluster, options.live_decisions)
    return recording.without(unhosted(cluster)), cluster


def report_recording(recording: Recording) -> None:
    """Says on stderr what of a recording is left out."""
    for bad in recording.bad_rows[:10]:
        print(f"warning: {bad}", file=sys.stderr)
    if recording.bad_rows:
        print(f"warning: {len(recording.bad_rows)} malformed lines left out", file=sys.stderr)
    if recording.left_out:
        print(f"warning: {recording.left_out} requests could not be recorded", file=sys.stderr)
    for reason, count in recording.skipped.items():
        them = "request is" if count == 1 else "requests are"
        print(f"warning: {count} {them} not simulated: {reason}", file=sys.stderr)


def _plots(done: Run, folder: Path) -> list[Path]:
    from chiron.sim.plots import plot_run

    return plot_run(done, folder)
