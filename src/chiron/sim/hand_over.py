"""Hand-over at a drain: running streams go on at other instances, which compute their tokens anew.

Carries out what `chiron.policy.hand_over` decides, by the way that live streams go: the instance ends them,
the router places them before all new requests, and what they have delivered is prompt at the next instance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chiron.policy.hand_over import INTERVAL_S, Grant, HandOverRule, RunningStream, choose
from chiron.policy.snapshots import NEVER_S
from chiron.policy.words import Phase
from chiron.sim.agenda import Agenda
from chiron.sim.instance import SimInstance
from chiron.sim.ledger import Ledger
from chiron.sim.settings import SimSettings


class HandOvers:
    """The hand-overs of one run."""

    def __init__(
        self,
        settings: SimSettings,
        agenda: Agenda,
        ledger: Ledger,
        given_back: Callable[[SimInstance, list[int], float], None],
    ) -> None:
        self._rule = HandOverRule()
        self._resume_s = settings.migration.resume_s
        self._agenda = agenda
        self._ledger = ledger
        self._given_back = given_back
        self._granted: dict[SimInstance, Grant] = {}
        # Streams and tokens that may go and have not: interactive, batch, tokens.
        self._saved: dict[SimInstance, tuple[float, float, float]] = {}
        self._moved_s: dict[int, float] = {}
        self.under_way = 0
        """Requests that have left an instance and have not come to their router."""
        self.done = 0
        """Moves so far."""

    def grant(self, granted: Mapping[SimInstance, Grant], now: float) -> None:
        """Take what the controller grants from now on; who is not in it is granted nothing."""
        self._granted = {each: grant for each, grant in granted.items() if grant}
        for instance in self._granted:
            if instance not in self._saved:
                self._saved[instance] = (0.0, 0.0, 0.0)
                self._look(now, instance)

    def _look(self, now: float, instance: SimInstance) -> None:
        grant = self._granted.get(instance)
        if grant is None or instance.dead or instance.phase is not Phase.DRAINING:
            del self._saved[instance]
            return
        interactive, batch, tokens = self._saved[instance]
        interactive += grant.interactive_per_s * INTERVAL_S
        batch += grant.batch_per_s * INTERVAL_S
        tokens += grant.tokens_per_s * INTERVAL_S
        chosen = choose(
            self._streams(instance, now),
            interactive=interactive,
            batch=batch,
            tokens=tokens,
            prefill_tokens_per_s=grant.prefill_tokens_per_s,
            rule=self._rule,
        )
        is_batch = self._ledger.is_batch
        for request_id in chosen.request_ids:
            assert isinstance(request_id, int)
            if self._hand_over(instance, request_id, now):
                batch -= is_batch[request_id]
                interactive -= not is_batch[request_id]
        # What nobody could use is not kept: room is room now.
        self._saved[instance] = (
            min(interactive, 1.0),
            min(batch, 1.0),
            min(tokens - chosen.tokens, grant.tokens_per_s * INTERVAL_S),
        )
        self._agenda.at(now + INTERVAL_S, self._look, instance)

    def _streams(self, instance: SimInstance, now: float) -> list[RunningStream]:
        instance.settle(now)
        ledger, model = self._ledger, instance.model
        moved_s = self._moved_s
        found = []
        for request_id, _, emitted in instance.engine.decoding_progress():
            batch = bool(ledger.is_batch[request_id])
            found.append(
                RunningStream(
                    request_id,
                    batch,
                    ledger.prompt_tokens[request_id],
                    ledger.delivered.get(request_id, 0) + emitted,
                    now - ledger.first_token_s[request_id],
                    NEVER_S if batch else model.itl_slo_s,
                    moved_s=now - moved_s.get(request_id, -NEVER_S),
                )
            )
        return found

    def _hand_over(self, instance: SimInstance, request_id: int, now: float) -> bool:
        handed = instance.hand_over(request_id, now)
        if handed is None:
            return False
        self._moved_s[request_id] = now
        self._ledger.handing.add(request_id)
        self.under_way += 1
        self.done += 1
        self._agenda.at(handed[1] + self._resume_s, self._arrived, (instance, request_id))
        return True

    def _arrived(self, now: float, handed: tuple[SimInstance, int]) -> None:
        instance, request_id = handed
        self.under_way -= 1
        self._ledger.came_s[request_id] = now
        self._given_back(instance, [request_id], now)
