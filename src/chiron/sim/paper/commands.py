"""The command that runs one case again, alone, and the scenario file that it reads."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from chiron.sim.compare import SEARCHED
from chiron.sim.paper.cache import write_whole
from chiron.sim.paper.case import Case, simulated
from chiron.sim.paper.experiment import Size
from chiron.sim.paper.fingerprint import scenario_digest
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.scenario_toml import UnwritableError, scenario_toml


@dataclass(slots=True)
class Commands:
    """Writes scenario files as they are needed, and makes commands."""

    out: Path
    """Folder of the whole run, as it was given."""
    size: Size
    traces: Path | None
    _files: dict[str, Path | None] = field(default_factory=dict)

    def command(self, case: Case) -> str:
        """What to type in the present folder. Raises OSError when its scenario cannot be written."""
        file = self.scenario_file(case.scenario)
        if file is None or case.measure is not simulated or case.policy.settings is not None:
            return shlex.join(self._of_paper(case))
        seed = str(case.seed)
        options = _options(case.policy)
        if case.policy.name not in SEARCHED:
            return shlex.join(["chiron", "sim", "run", str(file), *options, "--seed", seed])
        if options != ["--policy", case.policy.name]:
            return shlex.join(self._of_paper(case))
        searched = ["--policies", case.policy.name, "--seeds", "1", "--first-seed", seed, "--no-ceiling"]
        return shlex.join(["chiron", "sim", "compare", str(file), *searched])

    def scenario_file(self, scenario: Scenario) -> Path | None:
        """The scenario's file, written when it is asked for first; None: no file can say what it is.

        Raises OSError.
        """
        digest = scenario_digest(scenario)
        if digest not in self._files:
            self._files[digest] = self._written(scenario, digest)
        return self._files[digest]

    def _written(self, scenario: Scenario, digest: str) -> Path | None:
        # The policy is the command's: a file without one serves every policy.
        try:
            text = scenario_toml(replace(scenario, policy=PolicyChoice()))
        except UnwritableError:
            return None
        folder = self.out / "scenarios"
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9.]+", "-", scenario.name.lower()).strip("-.")
        file = folder / f"{name}-{digest[:8]}.toml"
        write_whole(file, text)
        return file

    def _of_paper(self, case: Case) -> list[str]:
        made = ["chiron", "sim", "paper", "--out", str(self.out), "--only", case.experiment]
        made += ["--case", case.key]
        if self.size.quick:
            made.append("--quick")
        if self.size.every_goal:
            made.append("--goals-full")
        if self.size.seeds is not None:
            made += ["--seeds", str(self.size.seeds)]
        if self.traces is not None:
            made += ["--traces", str(self.traces)]
        return made


def _options(policy: PolicyChoice) -> list[str]:
    options = ["--policy", policy.name]
    for part in ("autoscaler", "dispatcher", "local"):
        name = getattr(policy, part)
        if name is not None:
            options += [f"--{part}", name]
    if policy.preemption is not None:
        options.append("--preemption" if policy.preemption else "--no-preemption")
    for name, value in policy.parameters.items():
        options += ["--set", f"{name}={value!r}"]
    return options
