"""Whatever is wanted and whatever goes wrong, a GPU has one worker at most, and levels are reached."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import steps
from services.local_agent.condition import Failure, FailureKind, Have, Heard, Policy, Process
from services.local_agent.desired import Goal, Want
from services.local_agent.ledger import GpuLedger
from services.local_agent.supervisor import plan

POLICY = Policy(max_restarts=2, load_timeout_s=50, silence_timeout_s=500)
NAMES = ["a", "b", "c"]
GPUS = st.sets(st.integers(0, 3), min_size=1, max_size=2).map(lambda found: tuple(sorted(found)))
STATES = st.sampled_from(
    [
        types_pb2.INSTANCE_STATE_LOADING,
        types_pb2.INSTANCE_STATE_READY,
        types_pb2.INSTANCE_STATE_DRAINING,
        types_pb2.INSTANCE_STATE_SLEEPING,
        types_pb2.INSTANCE_STATE_FAILED,
    ]
)


class Supervision(RuleBasedStateMachine):
    """Three instances on four GPUs; steps succeed, workers crash and time passes in any order."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.incarnation = 0
        self.ledger = GpuLedger()
        spec = cluster_pb2.ModelSpec(name="m", engine="sim")
        self.wants = {name: Want(name, Goal.STOPPED, spec, gpus=(0,)) for name in NAMES}
        self.haves = {name: Have() for name in NAMES}
        self.occupied: dict[str, tuple[int, ...]] = {}

    @rule(name=st.sampled_from(NAMES), goal=st.sampled_from(Goal), gpus=GPUS, version=st.integers(1, 2))
    def want(self, name: str, goal: Goal, gpus: tuple[int, ...], version: int) -> None:
        wanted = replace(self.wants[name], goal=goal, gpus=gpus, spec_version=version)
        if wanted.restarts_afresh(self.wants[name]):
            self.haves[name] = self.haves[name].wanted_afresh()
        self.wants[name] = wanted

    @rule(name=st.sampled_from(NAMES))
    def crash(self, name: str) -> None:
        if self.haves[name].process is Process.ALIVE:
            self.haves[name] = self.haves[name].exited("killed by SIGKILL")

    @rule(name=st.sampled_from(NAMES), state=STATES)
    def hear(self, name: str, state: types_pb2.InstanceState.ValueType) -> None:
        if self.haves[name].process is Process.ALIVE:
            heard = Heard(state, "because", types_pb2.ROLE_MIXED)
            self.haves[name] = self.haves[name].told(heard, self.now)

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(NAMES), fails=st.booleans())
    def advance(self, name: str, fails: bool) -> None:
        self.step(name, fails=fails)

    @rule()
    def settle(self) -> None:
        """With nothing going wrong, every instance comes to rest where it should be or waits for a GPU."""
        for _ in range(30):
            for name in NAMES:
                self.step(name, fails=False)
                have = self.haves[name]
                if have.process is Process.ALIVE:
                    state = types_pb2.INSTANCE_STATE_READY
                    if self.wants[name].goal is Goal.SLEEPING:
                        state = types_pb2.INSTANCE_STATE_SLEEPING
                    self.haves[name] = have.told(Heard(state, "", types_pb2.ROLE_MIXED), self.now)
            self.now += 60
        for name, want in self.wants.items():
            have = self.haves[name]
            if want.goal is Goal.STOPPED or have.gave_up:
                assert have.process is Process.NONE
                assert have.gpus is None
            elif not have.blocked:
                assert (have.process, have.gpus) == (Process.ALIVE, want.gpus)

    def step(self, name: str, *, fails: bool) -> None:
        want, have = self.wants[name], self.haves[name]
        match plan(want, have, self.now, POLICY):
            case steps.Claim(gpus):
                held = self.ledger.claim(name, gpus)
                self.haves[name] = have.stopped_by("held") if held else have.claimed(gpus)
            case steps.CheckGpus():
                self.haves[name] = have.looked_at("GPU 0 is not free" if fails else "", self.now)
            case steps.Release():
                assert have.clear
                self.ledger.release(name)
                self.haves[name] = have.released()
                self.unblock()
            case steps.Launch() if fails:
                failure = Failure(FailureKind.CRASH, "no such python")
                self.haves[name] = have.gone(failure, self.now, POLICY)
            case steps.Launch():
                assert have.clear
                self.incarnation += 1
                self.occupied[name] = want.gpus
                self.haves[name] = have.launched(self.incarnation, want.spec_version, self.now)
            case steps.Drain():
                self.haves[name] = have.drained()
            case steps.Terminate(failure) if not fails:
                del self.occupied[name]
                self.haves[name] = have.gone(failure, self.now, POLICY)
                self.unblock()
            case steps.PutToSleep() | steps.WakeUp() | steps.SetRole() | steps.SetLimits() if fails:
                self.haves[name] = have.refused("not now", self.now)

    def unblock(self) -> None:
        self.haves = {name: have.unblocked() for name, have in self.haves.items()}

    @invariant()
    def no_gpu_has_two_workers(self) -> None:
        used = [gpu for gpus in self.occupied.values() for gpu in gpus]
        assert len(used) == len(set(used))

    @invariant()
    def a_worker_runs_only_on_gpus_that_its_instance_holds(self) -> None:
        for name, gpus in self.occupied.items():
            assert self.haves[name].gpus == gpus

    @invariant()
    def whoever_waits_waits_for_someone(self) -> None:
        if any(have.blocked for have in self.haves.values()):
            assert any(have.gpus is not None for have in self.haves.values())


TestSupervision = Supervision.TestCase
TestSupervision.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
