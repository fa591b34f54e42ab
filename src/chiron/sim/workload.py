"""What a simulation serves: parallel arrays, one entry per request, sorted by arrival."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chiron.policy.words import RequestClass


class InvalidWorkloadError(ValueError):
    """A workload's arrays do not describe requests; the text names the array and the first bad entry."""

    def __init__(self, array: str, problem: str) -> None:
        super().__init__(f"workload.{array}: {problem}")
        self.array = array


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival. Raises InvalidWorkloadError naming the array that is wrong.

    `output_tokens` are hidden from every policy: only the engine model knows when a request ends.
    """

    arrival_s: NDArray[np.float64]
    """Simulated time of arrival at the router, >= 0, ascending."""
    prompt_tokens: NDArray[np.int32]
    """>= 1."""
    output_tokens: NDArray[np.int32]
    """>= 1."""
    request_class: NDArray[np.int8]
    """RequestClass values."""
    model: NDArray[np.int16]
    """Index into SimSettings.models."""
    deadline_s: NDArray[np.float64]
    """Simulated time by which a batch request must have finished; inf for interactive ones."""
    prefix: tuple[tuple[int, ...], ...] | None = None
    """Chained hashes of each request's shared leading KV blocks; None: nothing is shared."""
    refuse_late: NDArray[np.bool_] | None = None
    """Whose callers ask to be refused at once when their SLO cannot be met; None: nobody does."""
    tenant: tuple[str, ...] | None = None
    """Who pays for each request; None: one tenant pays for all."""

    def __post_init__(self) -> None:
        count = len(self.arrival_s)
        for array in ("prompt_tokens", "output_tokens", "request_class", "model", "deadline_s"):
            if len(getattr(self, array)) != count:
                raise InvalidWorkloadError(
                    array, f"has {len(getattr(self, array))} entries for {count} requests"
                )
        if self.prefix is not None and len(self.prefix) != count:
            raise InvalidWorkloadError("prefix", f"has {len(self.prefix)} entries for {count} requests")
        if self.refuse_late is not None and len(self.refuse_late) != count:
            raise InvalidWorkloadError(
                "refuse_late", f"has {len(self.refuse_late)} entries for {count} requests"
            )
        if self.tenant is not None and len(self.tenant) != count:
            raise InvalidWorkloadError("tenant", f"has {len(self.tenant)} entries for {count} requests")
        interactive = self.request_class == RequestClass.INTERACTIVE
        batch = self.request_class == RequestClass.BATCH
        _require("arrival_s", np.isfinite(self.arrival_s) & (self.arrival_s >= 0), "must be finite and >= 0")
        _require(
            "arrival_s", np.diff(self.arrival_s, prepend=0.0) >= 0, "must not be earlier than the one before"
        )
        _require("prompt_tokens", self.prompt_tokens >= 1, "must be at least 1")
        _require("output_tokens", self.output_tokens >= 1, "must be at least 1")
        _require("request_class", interactive | batch, "must be a RequestClass value")
        _require("model", self.model >= 0, "must not be negative")
        _require("deadline_s", ~np.isnan(self.deadline_s), "must not be NaN")
        _require("deadline_s", batch | np.isposinf(self.deadline_s), "must be inf for an interactive request")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def tokens(self) -> int:
        """Output tokens of all requests together."""
        return int(self.output_tokens.sum(dtype=np.int64))


def _require(array: str, holds: NDArray[np.bool_], problem: str) -> None:
    if not holds.all():
        raise InvalidWorkloadError(array, f"request {int(np.argmin(holds))} {problem}")
