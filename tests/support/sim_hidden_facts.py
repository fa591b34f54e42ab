"""All that policies are shown and decide up to a moment, and worlds that differ in what is hidden then."""

import dataclasses

import numpy as np
import pytest

from chiron.policy.fleet import load_autoscaler
from chiron.policy.local import load_local
from chiron.sim import driver
from chiron.sim.autoscalers import Beforehand
from chiron.sim.instance import SimInstance
from chiron.sim.noise import StepNoise
from chiron.sim.policies import PolicyChoice
from chiron.sim.simulator import simulate
from chiron.sim.workload import Workload
from tests.support.sim_worlds import run

LATER_STEPS = 1.7
"""Steps whose time is hidden take so many times as long in the other world."""
LONGEST_STEP_S = 0.5
"""A step under way counts as run: whoever ends with it is not hidden."""
SHORTEST_STEP_S = 0.01


class Log:
    """What the autoscalers are shown and what they answer, in the order in which they are asked."""

    def __init__(self, until_s, known_steps=None):
        self.entries = []
        """Global: (snapshot, decision). Local: (which instance, sample, limits)."""
        self.known = 0
        """Entries up to the last tick that is not after the moment, that tick's included."""
        self.placed = []
        """(time, request, instance) of every request that was sent to an instance up to the moment."""
        self.known_steps = {}
        """Instance → random factors on step times that were drawn by then."""
        self._until_s = until_s
        self._same_steps = known_steps
        self._noises = {}

    def ticked(self, now_s):
        """Note a tick of the global autoscaler."""
        if now_s <= self._until_s:
            self.known = len(self.entries)
            self.known_steps = {number: noise.drawn for number, noise in self._noises.items()}

    def noise(self, settings, number):
        """Make the random factors of an instance."""
        same = None if self._same_steps is None else self._same_steps.get(number, 0)
        made = self._noises[number] = _OtherNoise(settings, number, same)
        return made

    @property
    def early(self):
        """The entries up to the moment."""
        return self.entries[: self.known]

    @property
    def fleet(self):
        """(snapshot, decision) of the global autoscaler up to the moment."""
        return [entry for entry in self.early if len(entry) == 2]

    @property
    def local(self):
        """(sample, limits) of the local autoscalers up to the moment."""
        return [entry[1:] for entry in self.early if len(entry) == 3]


def first_difference(log, again):
    """Tell in a few lines how the entries up to the moment differ; None: not at all."""
    for number, (one, other) in enumerate(zip(log.early, again.early, strict=False)):
        if one != other:
            return f"entry {number} of {log.known}: {one}\nbut with another future: {other}"
    for one, other in zip(log.placed, again.placed, strict=False):
        if one != other:
            return f"placed: {one}\nbut with another future: {other}"
    if len(log.placed) != len(again.placed):
        return f"{len(log.placed)} placed, but {len(again.placed)} with another future"
    if log.known != again.known:
        return f"{log.known} entries, but {again.known} with another future"
    return None


class _OtherNoise(StepNoise):
    """The simulator's own random factors, but larger ones after the first so many; None: its own."""

    def __init__(self, settings, number, same):
        super().__init__(settings, number)
        self._same, self._made = same, 0

    @property
    def drawn(self):
        return self._made - len(self.ready)

    def draw(self):
        if not self.ready:
            self.ready.append(super().draw())
            if self._same is not None:
                # The last is the next to be drawn.
                others = len(self.ready) - max(0, min(len(self.ready), self._same - self._made))
                self.ready[:others] = [LATER_STEPS * factor for factor in self.ready[:others]]
            self._made += len(self.ready)
        return self.ready.pop()


class _Fleet:
    def __init__(self, policy, log):
        self._policy, self._log = policy, log

    def decide(self, snapshot):
        decision = self._policy.decide(snapshot)
        self._log.entries.append((snapshot, decision))
        self._log.ticked(snapshot.now_s)
        return decision


class _Local:
    def __init__(self, policy, log, which):
        self._policy, self._log, self._which = policy, log, which

    def decide(self, sample):
        limits = self._policy.decide(sample)
        self._log.entries.append((self._which, sample, limits))
        return limits


def play(settings, work, policies, until_s, known_steps=None):
    """Run it with shipped policies (global, local); return the result and the log.

    known_steps: those of a world that is to be the same up to the moment; steps that are not among them take
    longer. Settings must have step noise then.
    """
    fleet, local = policies
    log = Log(until_s, known_steps)
    made = []

    def make_local():
        made.append(_Local(load_local(local), log, len(made)))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "StepNoise", log.noise)
        result = run(settings, work, _Fleet(load_autoscaler(fleet), log), local=make_local)
    return result, log


class _Planner:
    def __init__(self, planner, log):
        self._planner, self._log = planner, log

    def __getattr__(self, name):
        asked = getattr(self._planner, name)

        def logged(*given):
            answer = asked(*given)
            self._log.entries.append(("migration", 0, given, answer))
            return answer

        return logged if callable(asked) else asked


def play_named(settings, work, name, until_s, known_steps=None, fleet=None):
    """Run it with the policy of this name, as `chiron sim run` does; return the result and the log.

    fleet: takes the place of its autoscaler. known_steps: as of `play`.
    """
    made = PolicyChoice(name).make(Beforehand(settings.models))
    log = Log(until_s, known_steps)
    locals_ = []

    def make_local():
        locals_.append(_Local(made.local(), log, len(locals_)))
        return locals_[-1]

    submit = SimInstance.submit

    def submitted(instance, request_id, now, *given, **named):
        if now <= until_s:
            log.placed.append((now, request_id, instance.instance_id))
        submit(instance, request_id, now, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "StepNoise", log.noise)
        patch.setattr(SimInstance, "submit", submitted)
        result = simulate(
            made.settings(settings),
            work,
            autoscaler=_Fleet(made.autoscaler if fleet is None else fleet, log),
            dispatcher=made.dispatcher,
            local=None if made.local is None else make_local,
            migration=None if made.migration is None else _Planner(made.migration, log),
        )
    return result, log


def other_future(rng, work, outcomes, until_s, share=0.5):
    """Return work that is the same up to the moment and differs in all that is hidden then.

    Requests that run or wait then get other output lengths, longer ones and shorter ones, but longer than an
    engine can have written by then. Of the requests to come only a share comes, at other times.
    """
    come = work.arrival_s <= until_s
    known_until_s = until_s + LONGEST_STEP_S
    written = np.ceil((known_until_s - outcomes.first_token_s) / SHORTEST_STEP_S)
    written = np.maximum(0, np.nan_to_num(written)).astype(np.int32)
    hidden = come & ~(outcomes.finish_s <= known_until_s)
    drawn = written + rng.integers(1, 400, len(work), dtype=np.int32)
    columns = {field.name: getattr(work, field.name) for field in dataclasses.fields(Workload)}
    columns = {name: column for name, column in columns.items() if column is not None}
    columns["output_tokens"] = np.where(hidden, drawn, work.output_tokens).astype(np.int32)
    late = np.flatnonzero(~come)
    late = rng.choice(late, int(share * len(late)), replace=False)
    moved_s = until_s + 1.0 + np.cumsum(rng.exponential(0.1, len(late)))
    others = {name: column[late] for name, column in columns.items()}
    others["deadline_s"] = moved_s + (others["deadline_s"] - others["arrival_s"])
    others["arrival_s"] = moved_s
    return Workload(**{name: np.concatenate([columns[name][come], others[name]]) for name in columns})
