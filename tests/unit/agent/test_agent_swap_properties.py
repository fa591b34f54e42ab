"""Sleep, wake, start, stop, crash, lost answers and new agents in any order: one awake worker for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import steps
from services.local_agent.adoption import Legacy
from services.local_agent.condition import Have, Heard, Kept, Policy, Process
from services.local_agent.desired import Goal, Want
from services.local_agent.inheritance import inherited, tally_of
from services.local_agent.ledger import GpuLedger, Sleeper
from services.local_agent.memory import Tally, WorkerNoted
from services.local_agent.supervisor import plan

POLICY = Policy(max_restarts=2, load_timeout_s=1e6, silence_timeout_s=1e6)
NAMES = ["a", "b", "c"]
WHO = st.sampled_from(NAMES)
LOADING, READY = types_pb2.INSTANCE_STATE_LOADING, types_pb2.INSTANCE_STATE_READY
SLEEPING = types_pb2.INSTANCE_STATE_SLEEPING


@dataclass
class Worker:
    """What a worker truly is, and what it has said that the agent has not heard yet."""

    incarnation: int
    gpus: tuple[int, ...]
    state: types_pb2.InstanceState.ValueType = LOADING
    wakes_later: bool = False
    """It has been told to wake by somebody who did not wait."""
    said: tuple[types_pb2.InstanceState.ValueType, ...] = (LOADING,)

    def become(self, state: types_pb2.InstanceState.ValueType) -> None:
        self.state = state
        self.said = (*self.said, state)

    @property
    def awake(self) -> bool:
        return self.state != SLEEPING or self.wakes_later


class Swaps(RuleBasedStateMachine):
    """Three instances on two GPUs, of which each takes one or both."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.incarnation = 0
        spec = cluster_pb2.ModelSpec(name="m", engine="sim")
        self.wants = {
            "a": Want("a", Goal.STOPPED, spec, gpus=(0,)),
            "b": Want("b", Goal.STOPPED, spec, gpus=(0, 1)),
            "c": Want("c", Goal.STOPPED, spec, gpus=(1,)),
        }
        self.haves = {name: Have() for name in NAMES}
        self.ledger = GpuLedger()
        self.workers: dict[str, Worker] = {}
        self.journal: dict[str, WorkerNoted] = {}
        self.tallies: dict[str, Tally] = {}

    @rule(name=WHO, goal=st.sampled_from(Goal))
    def want(self, name: str, goal: Goal) -> None:
        wanted = replace(self.wants[name], goal=goal)
        if wanted.restarts_afresh(self.wants[name]):
            self.haves[name] = self.haves[name].wanted_afresh()
            self.tallies.pop(name, None)
        self.wants[name] = wanted

    @rule(name=WHO, wanted=st.booleans())
    def crash(self, name: str, wanted: bool) -> None:
        if self.workers.pop(name, None) is not None:
            self.haves[name] = self.haves[name].exited("killed by SIGKILL")
            if wanted:
                self.go(name, Goal.RUNNING, 12, mute=False)

    @rule(name=WHO)
    def hear(self, name: str) -> None:
        """The oldest thing that the worker has said arrives, however stale."""
        worker = self.workers.get(name)
        if worker is not None and self.haves[name].process is Process.ALIVE and worker.said:
            state, *rest = worker.said
            worker.said = tuple(rest) or (worker.state,)
            heard = Heard(state, "", types_pb2.ROLE_MIXED, "host:1")
            self.haves[name] = self.haves[name].told(heard, self.now)

    @rule(name=WHO)
    def come_to_an_end(self, name: str) -> None:
        """A load ends, and so does a wake that nobody waits for."""
        worker = self.workers.get(name)
        if worker is not None and (worker.state == LOADING or worker.wakes_later):
            worker.wakes_later = False
            worker.become(READY)

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=WHO, fails=st.booleans())
    def advance(self, name: str, fails: bool) -> None:
        self.step(name, fails=fails)

    @rule(
        name=WHO,
        goal=st.sampled_from([Goal.RUNNING, Goal.SLEEPING]),
        count=st.sampled_from([1, 3, 6, 12, 12, 12]),
        mute=st.booleans(),
    )
    def go(self, name: str, goal: Goal, count: int, mute: bool) -> None:
        """Something is wanted, and for a while all goes well, but that a mute worker's answers are lost."""
        self.want(name, goal)
        for _ in range(count):
            self.step(name, fails=False, mute=mute)
            if not mute:
                self.come_to_an_end(name)
            self.hear(name)
            self.now += 5

    @rule(name=WHO)
    def new_agent(self, name: str) -> None:
        """The agent is killed, possibly in the midst of a step, and another one takes over."""
        match plan(self.wants[name], self.haves[name], self.now, POLICY):
            case steps.Doze():
                self.journal[name] = replace(self.journal[name], asleep=True)
            case steps.WakeUp():
                self.journal[name] = replace(self.journal[name], asleep=False)
                self.workers[name].wakes_later = True
            case steps.PutToSleep() if self.idle_worker(name) is not None:
                self.workers[name].become(SLEEPING)
        self.ledger = GpuLedger()
        for one in NAMES:
            noted, worker = self.journal.get(one), self.workers.get(one)
            if noted is not None and worker is not None:
                if noted.asleep:
                    self.ledger.doze(one, Sleeper(noted.gpus, 0, 0))
                else:
                    assert not self.ledger.claim(one, noted.gpus), "its worker would be ended as a stray"
            died = noted if worker is None else None
            if died is not None:
                del self.journal[one]
            legacy = Legacy(self.wants[one], noted if worker else None, died, self.tallies.get(one))
            self.haves[one] = inherited(legacy, "", self.now, POLICY)

    @rule()
    def settle(self) -> None:
        """With nothing going wrong any more, all come to rest as wanted, but those that wait for a GPU."""
        for _ in range(40):
            for name in NAMES:
                for _ in range(4):
                    self.step(name, fails=False)
                    self.come_to_an_end(name)
                for _ in range(4):
                    self.hear(name)
            self.now += 10
        for name, want in self.wants.items():
            have, worker = self.haves[name], self.workers.get(name)
            if want.goal is Goal.STOPPED or have.gave_up:
                assert worker is None
                assert have.gpus is None
            elif want.goal is Goal.SLEEPING:
                assert have.blocked or (have.dozing and worker is not None and worker.state == SLEEPING)
            else:
                assert have.blocked or (not have.dozing and worker is not None and worker.state == READY)

    def idle_worker(self, name: str) -> Worker | None:
        """The worker, where a command to sleep is carried out at once."""
        worker = self.workers.get(name)
        return worker if worker is not None and worker.state != LOADING and not worker.wakes_later else None

    def step(self, name: str, *, fails: bool, mute: bool = False) -> None:
        want, have = self.wants[name], self.haves[name]
        match plan(want, have, self.now, POLICY):
            case steps.Claim(gpus):
                held = self.ledger.claim(name, gpus)
                self.haves[name] = have.stopped_by("held") if held else have.claimed(gpus)
            case steps.CheckGpus():
                self.haves[name] = have.looked_at("GPU 0 is not free" if fails else "", self.now)
            case steps.Release():
                self.ledger.release(name)
                self.haves[name] = have.released()
                self.unblock()
            case steps.Launch():
                self.incarnation += 1
                self.journal[name] = WorkerNoted(
                    name, self.incarnation, 0, want.gpus, "", "", address="host:1"
                )
                self.workers[name] = Worker(self.incarnation, want.gpus)
                self.haves[name] = have.launched(self.incarnation, 0, self.now)
            case steps.Drain():
                self.haves[name] = have.drained()
            case steps.Terminate(failure):
                self.workers.pop(name, None)
                self.journal.pop(name, None)
                self.haves[name] = have.gone(failure, self.now, POLICY)
                self.tallies[name] = tally_of(name, self.haves[name])
                self.unblock()
            case steps.PutToSleep():
                worker = self.idle_worker(name)
                if worker is not None:
                    worker.become(SLEEPING)
                if fails or mute or worker is None:
                    self.haves[name] = have.refused("no answer", self.now)
                else:
                    self.haves[name] = have.fell_asleep(self.now)
            case steps.MeasureSleeper():
                self.haves[name] = have.measured(Kept(0, 0), "too much" if fails else "", self.now)
            case steps.Doze() if not fails:
                self.journal[name] = replace(self.journal[name], asleep=True)
                self.ledger.doze(name, Sleeper(have.gpus or (), 0, 0))
                self.haves[name] = have.dozes()
                self.unblock()
            case steps.Reclaim(gpus):
                held = self.ledger.claim(name, gpus)
                self.haves[name] = have.stopped_by("held") if held else have.reclaims()
            case steps.WakeUp():
                self.journal[name] = replace(self.journal[name], asleep=False)
                have = have.waking(self.now)
                if worker := self.workers.get(name):
                    worker.wakes_later = True
                self.haves[name] = have.refused("no answer", self.now)
                if not fails and not mute and worker is not None:
                    self.come_to_an_end(name)
                    heard = replace(have.heard, state=READY)
                    self.haves[name] = have.told(heard, self.now)

    def unblock(self) -> None:
        self.haves = {name: have.unblocked() for name, have in self.haves.items()}

    @invariant()
    def no_gpu_has_two_workers_that_are_awake(self) -> None:
        owned = [gpu for worker in self.workers.values() if worker.awake for gpu in worker.gpus]
        assert len(owned) == len(set(owned))

    @invariant()
    def whoever_waits_waits_for_someone(self) -> None:
        if any(have.blocked == "held" for have in self.haves.values()):
            assert any(have.gpus is not None and not have.dozing for have in self.haves.values())


TestSwaps = Swaps.TestCase
TestSwaps.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
