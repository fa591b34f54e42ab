"""Batch credits: how many batch requests routers may send, so that batch work fills spare slots only. Pure.

Every WatchLoad message tells its router the number that holds until the next one. A credit says when to send,
it is no right to be served: the worker refuses what it has no place for.
"""

from __future__ import annotations

from chiron.v1 import types_pb2

TTL_S = 2.0
"""How long credits last without another message, in seconds."""
TURN_S = 2.0
"""How long a router has a credit that cannot be divided, before the next one has it, in seconds."""
_AHEAD = 2
"""Batch requests that may wait in a batch instance, so that a freed slot is refilled without a round trip."""


def spare(
    role: types_pb2.Role.ValueType,
    *,
    ready: bool,
    batch_size: int,
    taken: int,
    max_waiting: int,
    held_up: bool = False,
) -> int:
    """Batch requests that the worker has a use for now, over all routers.

    Args:
        role: the worker's.
        ready: whether it takes requests at all.
        batch_size: in requests.
        taken: slots that its requests of both classes hold or wait for.
        max_waiting: requests beyond the batch size that it lets wait.
        held_up: interactive requests or preempted ones wait here: what comes free is theirs.
    """
    if not ready or held_up or role == types_pb2.ROLE_INTERACTIVE:
        return 0
    ahead = min(_AHEAD, max_waiting) if role == types_pb2.ROLE_BATCH else 0
    return max(0, batch_size + ahead - taken)
