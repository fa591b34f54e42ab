"""The engine's own record of a request."""

from collections.abc import Hashable

from chiron.engine.request import RequestPhase

NOT_JOINED = -1
_WAITING = RequestPhase.WAITING


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

    offset: int
    """Computed tokens minus the decode group's clock; set by the group."""
    finish_at: int
    """The group's clock at the last token; set by the group."""

    def __init__(
        self,
        request_id: int,
        key: tuple[int, int],
        prompt: int,
        output: int,
        hashes: tuple[Hashable, ...] = (),
        restored: int = 0,
    ) -> None:
        self.request_id = request_id
        self.key = key
        # Resumed tokens are computed like prompt and are not emitted again.
        self.prompt = prompt
        self.output = output
        self.hashes = hashes
        self.restored = restored
        self.phase = _WAITING
        self.emitted = 0
        self.computed = 0
        self.cached_tokens = 0
        self.preemptions = 0
        # Cached blocks in use, in prompt order, and how many prompt blocks were offered to the cache so
        # far.
        self.held: list[Hashable] = []
        self.published = 0
        # Which stay in the decode group this is.
        self.membership = NOT_JOINED

    @property
    def target(self) -> int:
        """Tokens to compute before the next output token: the prompt and what was emitted since."""
        return self.prompt + self.emitted
