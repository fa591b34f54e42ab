"""From what became of the requests to the figures of the result, and the checks that end every run."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chiron.policy.words import Phase, RequestClass
from chiron.sim.ledger import FINISHED, OPEN, REFUSED, Ledger
from chiron.sim.results import (
    HandOverFigures,
    MigrationFigures,
    Outcomes,
    Percentiles,
    SimResult,
    SloAttainment,
    Throughput,
)
from chiron.sim.settings import SimSettings
from chiron.sim.step_history import note_longest_gaps, p99_itl_s
from chiron.sim.wait_figures import estimator_figures, refusals_of
from chiron.sim.workload import Workload

if TYPE_CHECKING:
    from chiron.sim.simulator import Simulation


def conclude(
    settings: SimSettings,
    workload: Workload,
    simulation: Simulation,
    policy: str,
    end_s: float,
    began_s: float,
) -> SimResult:
    """Check the invariants and return the figures of a run that ended at `end_s`."""
    check_conservation(simulation)
    check_ownership(simulation)
    ledger, gpus = simulation.ledger, simulation.gpus
    outcomes = outcomes_of(settings, workload, ledger)
    interactive = workload.request_class == RequestClass.INTERACTIVE
    counted = outcomes.counted
    measured_s = max(end_s - settings.warmup_s, 0.0)
    after_warmup = outcomes.finish_s >= settings.warmup_s
    finished = int(np.count_nonzero(after_warmup))
    tokens = int(workload.output_tokens[after_warmup].sum(dtype=np.int64)) + sum(ledger.delivered.values())
    hours = gpus.gpu_hours
    itl_s = mean_itl_s(workload, outcomes)
    streamed = counted & interactive & ~np.isnan(itl_s) & (workload.output_tokens > 1)
    got_token = counted & interactive & ~np.isnan(outcomes.first_token_s)
    looked_at = [stretch for stretch in note_longest_gaps(ledger) if streamed[stretch[0]]]
    gaps_s = np.frombuffer(ledger.longest_gap_s, dtype=np.float64)
    state = np.frombuffer(bytes(ledger.state), dtype=np.uint8)
    return SimResult(
        policy=policy,
        seed=settings.seed,
        requests=len(workload),
        counted=int(np.count_nonzero(counted)),
        slo_attainment=SloAttainment(
            _share(outcomes.attained, counted & interactive),
            _share(outcomes.attained, counted & ~interactive),
            _share(outcomes.attained, counted),
        ),
        refused=int(np.count_nonzero(outcomes.refused & counted)),
        unfinished=int(np.count_nonzero((state == OPEN) & counted)),
        gpu_hours=hours,
        gpus_peak=gpus.peak,
        gpu_cost=gpus.cost,
        throughput=Throughput(
            finished / measured_s if measured_s else 0.0,
            tokens / measured_s if measured_s else 0.0,
            finished / hours if hours else 0.0,
        ),
        ttft_ms=Percentiles.of(1e3 * (outcomes.first_token_s - workload.arrival_s)[got_token]),
        itl_ms=Percentiles.of(1e3 * itl_s[streamed]),
        longest_gap_ms=Percentiles.of(1e3 * gaps_s[streamed]),
        itl_p99_per_request_ms=Percentiles.of(1e3 * p99_itl_s(looked_at, ledger)),
        scaling_actions=len(simulation.controller.actions),
        reversals=simulation.controller.reversals,
        preemptions=ledger.preemptions,
        failures=simulation.cluster.failures,
        retries=ledger.retries,
        simulated_s=end_s,
        events=simulation.loop_events,
        wall_s=perf_counter() - began_s,
        refusals=refusals_of(simulation.routers),
        estimator=estimator_figures(simulation.routers, settings.queues),
        migrations=_migration_figures(simulation),
        hand_overs=_hand_over_figures(simulation),
        outcomes=outcomes,
        timeline=tuple(simulation.timeline),
        actions=tuple(simulation.controller.actions),
    )


def _migration_figures(simulation: Simulation) -> MigrationFigures | None:
    found = simulation.migrations
    if found is None:
        return None
    return MigrationFigures(found.done, found.given_up, Percentiles.of(1e3 * np.array(found.stalls_s)))


def _hand_over_figures(simulation: Simulation) -> HandOverFigures | None:
    found = simulation.hand_overs
    if not found.done:
        return None
    return HandOverFigures(found.done, Percentiles.of(1e3 * np.array(simulation.ledger.handed_gaps_s)))


def outcomes_of(settings: SimSettings, workload: Workload, ledger: Ledger) -> Outcomes:
    """What became of each request."""
    first_token_s = np.frombuffer(ledger.first_token_s, dtype=np.float64).copy()
    finish_s = np.frombuffer(ledger.finish_s, dtype=np.float64).copy()
    state = np.frombuffer(bytes(ledger.state), dtype=np.uint8)
    refused = state == REFUSED
    nothing = np.zeros(len(workload), dtype=np.bool_)
    outcomes = Outcomes(first_token_s, finish_s, refused, nothing, workload.arrival_s >= settings.warmup_s)
    slos = np.array([(model.ttft_slo_s, model.itl_slo_s) for model in settings.models])
    ttft_slo_s, itl_slo_s = slos[workload.model, 0], slos[workload.model, 1]
    itl_s = mean_itl_s(workload, outcomes)
    finished = state == FINISHED
    in_time = (first_token_s - workload.arrival_s <= ttft_slo_s) & (itl_s <= itl_slo_s)
    interactive = workload.request_class == RequestClass.INTERACTIVE
    attained = finished & np.where(interactive, in_time, finish_s <= workload.deadline_s)
    return Outcomes(first_token_s, finish_s, refused, attained, outcomes.counted)


def mean_itl_s(workload: Workload, outcomes: Outcomes) -> NDArray[np.float64]:
    """Mean time between the tokens of each request: (last - first) / (tokens - 1); 0 for one token."""
    gaps = np.maximum(workload.output_tokens - 1, 1)
    return np.asarray((outcomes.finish_s - outcomes.first_token_s) / gaps, dtype=np.float64)


def check_conservation(simulation: Simulation) -> None:
    """Raise AssertionError unless every request and every token is accounted for exactly once."""
    ledger = simulation.ledger
    finished = ledger.state.count(FINISHED)
    open_requests = ledger.state.count(OPEN)
    if finished + ledger.refused + open_requests != len(ledger):
        raise AssertionError("requests: finished, refused and open ones do not add up")
    alive = [instance for instance in simulation.cluster.instances.values() if not instance.dead]
    somewhere = [request_id for instance in alive for request_id in instance.held_ids()]
    queued = sum(len(router.interactive) + len(router.batch) for router in simulation.routers)
    arrived = sum(router.arrived_interactive + router.arrived_batch for router in simulation.routers)
    if len(set(somewhere)) != len(somewhere):
        raise AssertionError("a request is in two engines")
    accounted = finished + ledger.refused + queued + len(somewhere) + simulation.hand_overs.under_way
    if accounted != arrived:
        raise AssertionError(f"requests: {arrived} have arrived, {accounted} are accounted for")
    emitted = simulation.cluster.emitted_by_gone + sum(
        instance.engine.totals.emitted_tokens for instance in alive
    )
    under_way = sum(
        instance.emitted_of(request_id) for instance in alive for request_id in instance.held_ids()
    )
    delivered = ledger.finished_tokens + sum(ledger.delivered.values()) + under_way
    if emitted != delivered:
        raise AssertionError(f"tokens: engines emitted {emitted}, requests have {delivered}")


def check_ownership(simulation: Simulation) -> None:
    """Raise AssertionError unless each awake instance owns its GPUs, and no one else owns any."""
    owned = simulation.gpus.owned()
    instances = simulation.cluster.instances
    for instance in instances.values():
        node, indexes = instance.claim
        awake = instance.phase is not Phase.SLEEPING and not instance.dead
        if awake and any(owned.get((node, index)) != instance.instance_id for index in indexes):
            raise AssertionError(f"{instance.instance_id} is awake and does not own its GPUs")
    for (node, index), owner in owned.items():
        if (
            owner not in instances
            or node != instances[owner].claim[0]
            or index not in instances[owner].claim[1]
        ):
            raise AssertionError(f"GPU {index} of {node} is owned by {owner}, which is not there")


def _share(attained: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
    total = int(np.count_nonzero(among))
    return int(np.count_nonzero(attained & among)) / total if total else None
