"""The engine's own record of a request."""

from collections.abc import Hashable

from chiron.engine.request import EngineRequest, RequestPhase

NOT_JOINED = -1


class Sequence:
    """Mutable state of one request between submit and its end.

    While it decodes, `emitted` and `computed` are not kept up to date step by step: they follow from the
    decode group's clock and are settled when the sequence leaves the group.
    """

    __slots__ = (
        "cached_tokens",
        "computed",
        "emitted",
        "finish_at",
        "hashes",
        "held",
        "key",
        "membership",
        "offset",
        "output",
        "phase",
        "preemptions",
        "prompt",
        "published",
        "request_id",
        "restored",
    )

    def __init__(self, request: EngineRequest, arrival: int) -> None:
        self.request_id = request.request_id
        self.key = (request.priority, arrival)
        # Resumed tokens are computed like prompt and are not emitted again.
        self.prompt = request.prompt_tokens + request.resumed_tokens
        self.output = request.output_tokens - request.resumed_tokens
        self.hashes = request.prefix_hashes
        self.restored = request.restored_tokens
        self.phase = RequestPhase.WAITING
        self.emitted = 0
        self.computed = 0
        self.cached_tokens = 0
        self.preemptions = 0
        # Cached blocks in use, in prompt order, and how many prompt blocks were offered to the cache so
        # far.
        self.held: list[Hashable] = []
        self.published = 0
        # Decode group: which stay in it this is, computed tokens minus the clock, clock value at the last
        # token.
        self.membership = NOT_JOINED
        self.offset = 0
        self.finish_at = 0

    @property
    def target(self) -> int:
        """Tokens to compute before the next output token: the prompt and what was emitted since."""
        return self.prompt + self.emitted
