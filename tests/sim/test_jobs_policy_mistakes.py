"""A mistake in a policy of one's own, as `chiron sim run` tells it: one line and exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chiron_command import only_error, simulate

TINY = Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml"
POLICIES = """
from chiron.policy.decisions import FleetDecision, Limits, Start
from chiron.policy.dispatch import Decision


class Raises:
    def decide(self, snapshot):
        return 1 / 0


class Minus:
    def decide(self, snapshot):
        return FleetDecision((Start("toy", snapshot.models[0].instances[0].role, -1, "why"),), ())


class Nobody:
    def pick(self, request, instances):
        return None


class Negative:
    def decide(self, sample):
        return Limits(8, 512, -7, "why")


class Stop(BaseException):
    pass


class Stops:
    def decide(self, snapshot):
        raise Stop("enough")


class NoArgument:
    def __init__(self, wanted):
        self.decide = wanted

    def decide(self, snapshot): ...
"""


@pytest.mark.parametrize(
    ("option", "kind", "line"),
    [
        (
            "--autoscaler",
            "Raises",
            "autoscaler mine:Raises failed at 1 s: ZeroDivisionError: division by zero (",
        ),
        ("--autoscaler", "Minus", "autoscaler mine:Minus at 1 s: actions[0]: Start.count is -1; "),
        ("--autoscaler", "NoArgument", "autoscaler mine:NoArgument: NoArgument() failed: TypeError: "),
        ("--autoscaler", "Stops", "a policy failed: Stop: enough ("),
        ("--dispatcher", "Nobody", "dispatcher mine:Nobody for an interactive request with "),
        (
            "--local",
            "Negative",
            "local autoscaler mine:Negative for instance toy-00000: Limits.safe_batch_size",
        ),
    ],
)
def test_a_mistake_is_one_line(option: str, kind: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(POLICIES, encoding="utf-8")

    done = simulate("run", TINY, option, f"mine:{kind}", folder=tmp_path)

    assert only_error(done, 2).startswith(line)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('local = "nope:X"', "'local': local autoscaler 'nope:X': No module named 'nope'"),
        ('autoscaler = "mine:Y"', "'autoscaler': autoscaler 'mine:Y': module 'mine' has no"),
        ('dispatcher = "mine:NoArgument"', "'dispatcher': dispatcher 'mine:NoArgument': NoArg"),
    ],
)
def test_a_bad_part_of_a_scenario_is_told_with_its_file_and_key(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(POLICIES, encoding="utf-8")
    scenario = tmp_path / "s.toml"
    scenario.write_text(f"{TINY.read_text(encoding='utf-8')}\n[policy]\n{line}\n", encoding="utf-8")

    error = only_error(simulate("run", scenario, folder=tmp_path), 2)

    assert error.startswith(f"{scenario} [policy]: {told}")
    # The simulator's own names are no help to who names a class.
    assert "in the simulator also" not in error
