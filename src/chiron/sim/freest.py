"""Where a request goes under Llumnix's dispatch, without a view of each instance made for each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chiron.policy.words import Role
from chiron.sim.baselines.llumnix import BLOCK_TOKENS, FreenessDispatcher
from chiron.sim.seen import Seen

if TYPE_CHECKING:
    from chiron.sim.picking import Cached, Picker


class FreestPicker:
    """`GivingWay(FreenessDispatcher())` on what the router has seen: O(number of instances) per request.

    What waits counts by the mean prompt, which changes with each request: no order of the instances stands.
    """

    def __init__(
        self, dispatcher: FreenessDispatcher, queue_allowance: int, scanning: Callable[[], Picker]
    ) -> None:
        """scanning: makes a picker that asks the dispatcher, for requests to which batch work gives way."""
        self._dispatcher = dispatcher
        self._allowance = queue_allowance
        self._make_scanning = scanning
        self._scanning: Picker | None = None
        self._seen: dict[str, Seen] = {}

    def changed(self, seen: Seen) -> None:
        """See `Picker.changed`."""
        if seen.accepts:
            self._seen[seen.instance_id] = seen
        else:
            self._seen.pop(seen.instance_id, None)
        if self._scanning is not None:
            self._scanning.changed(seen)

    def pick_interactive(
        self, prompt_tokens: int, yielding: bool, cached: Cached | None = None
    ) -> tuple[Seen, bool] | None:
        """See `Picker.pick_interactive`."""
        if not yielding:
            return self._pick(prompt_tokens, Role.BATCH)
        if self._scanning is None:
            self._scanning = self._make_scanning()
            for seen in self._seen.values():
                self._scanning.changed(seen)
        return self._scanning.pick_interactive(prompt_tokens, yielding)

    def pick_batch(self, prompt_tokens: int, cached: Cached | None = None) -> tuple[Seen, bool] | None:
        """See `Picker.pick_batch`."""
        return self._pick(prompt_tokens, Role.INTERACTIVE)

    def _pick(self, prompt_tokens: int, wrong: Role) -> tuple[Seen, bool] | None:
        # As FreenessDispatcher.pick() does.
        blocks_each = self._dispatcher.blocks_each(prompt_tokens)
        allowance = self._allowance
        best: Seen | None = None
        least = 0.0
        waits = False
        for seen in self._seen.values():
            if seen.role is wrong:
                continue
            running = seen.running_interactive + seen.running_batch
            waiting = seen.waiting_interactive + seen.waiting_batch + seen.reserved
            beyond = running + waiting - seen.batch_size
            if beyond >= allowance:
                continue
            key = (waiting * blocks_each - seen.kv_free_tokens / BLOCK_TOKENS) / (running or 1)
            if best is None or key < least or (key == least and seen.instance_id < best.instance_id):
                best, least, waits = seen, key, beyond >= 0
        return None if best is None else (best, waits)
