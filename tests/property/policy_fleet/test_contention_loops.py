"""Two priorities with instances of several GPUs over nodes, in closed loops: the urgent one gets one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from chiron.policy.decisions import Action, Retire, Sleep, Start, Wake
from chiron.policy.fleet import Chiron, ChironSettings
from chiron.policy.placement import NodeGpus, Want, place
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

SLOTS = 50


@dataclass(slots=True)
class Placed:
    model: str
    node: str
    gpus: tuple[int, ...]
    ready_at_s: float
    drains_since_s: float | None = None
    running: int = 0

    def phase(self, now_s: float) -> Phase:
        if self.drains_since_s is not None:
            return Phase.DRAINING
        return Phase.READY if self.ready_at_s <= now_s else Phase.LOADING


@dataclass(slots=True)
class Demand:
    """Interactive requests that are always there: those that end are followed by as many."""

    gpus: int
    priority: int
    requests: int


@dataclass(slots=True)
class Nodes:
    """Whole seconds; starts go where the placement policy puts them, drains take `drain_s`."""

    count: int
    gpus: int
    models: dict[str, Demand]
    load_s: float = 20.0
    drain_s: float = 10.0
    now_s: float = 0.0
    made: int = 0
    instances: dict[str, Placed] = field(default_factory=dict)
    autoscaler: Chiron = field(default_factory=Chiron)

    def node_gpus(self) -> list[NodeGpus]:
        used: dict[str, set[int]] = {f"n{number}": set() for number in range(self.count)}
        for each in self.instances.values():
            used[each.node].update(each.gpus)
        return [NodeGpus(node, frozenset(range(self.gpus)), frozenset(taken)) for node, taken in used.items()]

    def start(self, model: str) -> str | None:
        there: dict[str, int] = {}
        for each in self.instances.values():
            there[each.node] = there.get(each.node, 0) + (each.model == model)
        plan = place(self.node_gpus(), [Want(model, self.models[model].gpus, 1, there)])
        for spot in plan.placements:
            self.made += 1
            key = f"{model}-{self.made:04}"
            self.instances[key] = Placed(model, spot.node_id, spot.gpu_indexes, self.now_s + self.load_s)
            return key
        return None

    def step(self) -> list[tuple[Action, str | None]]:
        """What is decided one second later, a start with the instance that it made, one each."""
        self.now_s += 1.0
        over = [
            key
            for key, each in self.instances.items()
            if each.drains_since_s is not None and self.now_s - each.drains_since_s >= self.drain_s
        ]
        for key in over:
            del self.instances[key]
        free = {node.node_id: len(node.healthy - node.used) for node in self.node_gpus()}
        fleets = tuple(self._fleet(name, demand) for name, demand in self.models.items())
        decision = self.autoscaler.decide(FleetSnapshot(self.now_s, fleets, free))
        done: list[tuple[Action, str | None]] = []
        for action in decision.actions:
            if isinstance(action, Start):
                done += [(action, self.start(action.model)) for _ in range(action.count)]
                continue
            if isinstance(action, Retire):
                self.instances[action.instance_id].drains_since_s = self.now_s
            done.append((action, action.instance_id))
        return done

    def _fleet(self, name: str, demand: Demand) -> ModelFleet:
        mine = {key: each for key, each in self.instances.items() if each.model == name}
        serving = [each for each in mine.values() if each.phase(self.now_s) is Phase.READY]
        left = demand.requests
        # A tenth of those that run ends within a second.
        ended = sum(each.running for each in serving) // 10
        for each in serving:
            each.running = min(SLOTS, -(-demand.requests // len(serving)), left)
            left -= each.running
        traffic = Traffic(
            1.0,
            arrived_interactive=ended,
            queued_interactive=left,
            finished_interactive=ended,
            finished_output_tokens=ended * 200,
            finished_output_tokens_sq=ended * 60_000.0,
        )
        instances = tuple(
            FleetInstance(
                key,
                each.node,
                Role.MIXED,
                phase := each.phase(self.now_s),
                SLOTS,
                SLOTS,
                running_interactive=each.running if phase is Phase.READY else 0,
                tokens_per_s=20.0 * each.running if phase is Phase.READY else 0.0,
                ready_in_s=max(0.0, each.ready_at_s - self.now_s),
                phase_age_s=self.now_s,
            )
            for key, each in mine.items()
        )
        return ModelFleet(
            name,
            demand.gpus,
            0,
            0,
            10.0,
            0.2,
            2.0,
            instances,
            traffic,
            load_time_s=self.load_s,
            initial_batch_size=SLOTS,
            priority=demand.priority,
        )


def contradictions(actions: list[Action]) -> Iterator[str]:
    """What one decision must not do: two things to one instance, or start a model and take from it."""
    one_each = [action.instance_id for action in actions if not isinstance(action, Start)]
    if len(one_each) != len(set(one_each)):
        yield f"two actions for one instance: {actions}"
    grows = {action.model for action in actions if isinstance(action, Start | Wake)}
    shrinks = {action.model for action in actions if isinstance(action, Retire | Sleep)}
    if grows & shrinks:
        yield f"{grows & shrinks} gets instances and loses some: {actions}"


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 5),
    gpus=st.integers(2, 8),
    urgent_gpus=st.integers(2, 8),
    urgent_requests=st.sampled_from([10, 40, 90]),
    per_gpu=st.integers(10, 60),
    load_s=st.sampled_from([10.0, 20.0, 40.0]),
    drain_s=st.sampled_from([3.0, 10.0, 45.0]),
)
# What drains is over when what loads becomes ready.
@example(2, 4, 2, 90, 10, 10.0, 10.0)
def test_the_urgent_one_serves_within_a_drain_and_a_load_and_nobody_goes_in_vain(
    count: int,
    gpus: int,
    urgent_gpus: int,
    urgent_requests: int,
    per_gpu: int,
    load_s: float,
    drain_s: float,
) -> None:
    assume(urgent_gpus <= gpus)
    # The less urgent one has all GPUs, and demand for more or fewer.
    low = Demand(1, 1, per_gpu * count * gpus)
    urgent = Demand(urgent_gpus, 0, 0)
    nodes = Nodes(count, gpus, {"low": low, "urgent": urgent}, load_s, drain_s)
    while nodes.start("low"):
        pass
    for _ in range(int(load_s) + 60):
        nodes.step()
    urgent.requests, came_s = urgent_requests, nodes.now_s
    owed: dict[str, int] = {}
    given_up = urgent_starts = 0
    served_s: float | None = None
    for _ in range(300):
        done = nodes.step()
        assert not list(contradictions([action for action, _ in done]))
        for action, key in done:
            assert key is not None, f"no node has room: {action}"
            node = nodes.instances[key].node
            if isinstance(action, Start) and action.model == "urgent":
                urgent_starts += 1
                if owed.pop(node, None) is None:
                    # It found a node that became free otherwise: what was given up may be for nobody now.
                    owed.clear()
            elif isinstance(action, Start):
                assert node not in owed, f"{key} takes what {owed[node]} went for on {node}"
            elif action.reason.startswith("contention"):
                given_up += 1
                owed[node] = owed.get(node, 0) + 1
        ready = any(
            each.model == "urgent" and each.phase(nodes.now_s) is Phase.READY
            for each in nodes.instances.values()
        )
        if ready and served_s is None:
            served_s = nodes.now_s
    assert served_s is not None
    # Two ticks to see the demand and the free GPUs.
    assert served_s - came_s <= drain_s + load_s + 2
    assert given_up <= urgent_starts * urgent_gpus


ROLES = st.sampled_from([Role.MIXED, Role.INTERACTIVE, Role.BATCH])


@st.composite
def any_fleet(draw: st.DrawFn, name: str) -> ModelFleet:
    instances = tuple(
        FleetInstance(
            f"{name}-{number}",
            f"n{draw(st.integers(0, 2))}",
            draw(ROLES),
            phase := draw(st.sampled_from(list(Phase))),
            SLOTS,
            SLOTS,
            running_interactive=draw(st.integers(0, SLOTS)),
            running_batch=draw(st.integers(0, 5)),
            can_wake=phase is Phase.SLEEPING and draw(st.booleans()),
            can_sleep=phase is Phase.READY and draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 5)))
    )
    return ModelFleet(
        name,
        draw(st.integers(1, 4)),
        draw(st.integers(0, 2)),
        draw(st.sampled_from([0, 2, 4])),
        10.0,
        0.2,
        2.0,
        instances,
        Traffic(1.0, queued_interactive=draw(st.sampled_from([0, 20, 200]))),
        (BatchBacklog(60.0, 500, 0),) if draw(st.booleans()) else (),
        load_time_s=20.0,
        initial_batch_size=SLOTS,
        priority=draw(st.integers(0, 2)),
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_decision_contradicts_itself(data: st.DataObject) -> None:
    autoscaler = Chiron(ChironSettings(batch_idle_s=0.0))
    for now_s in (0.0, 30.0):
        fleets = tuple(data.draw(any_fleet(name)) for name in "abc")
        free = {f"n{number}": data.draw(st.integers(0, 4)) for number in range(3)}
        budget = data.draw(st.sampled_from([0, 4, 12]))
        actions = autoscaler.decide(FleetSnapshot(now_s, fleets, free, gpu_budget=budget)).actions
        assert not list(contradictions(list(actions)))
        by_name = {fleet.name: fleet for fleet in fleets}
        for action in actions:
            assert action.reason
            assert {"ibp", "bbp", "theta"} <= action.numbers.keys()
            if isinstance(action, Wake):
                woken = next(
                    i for i in by_name[action.model].instances if i.instance_id == action.instance_id
                )
                assert woken.can_wake
