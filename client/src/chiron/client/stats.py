"""What a client has done so far, in counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ClientStats:
    """Counts since the client was made."""

    requests: int = 0
    """Requests begun."""
    failed: int = 0
    """Requests that ended with an error; those that their caller gave up are not among them."""
    retried: int = 0
    """Requests that needed more than one attempt."""
    retries: int = 0
    """Attempts beyond the first, over all requests."""
    throttled: int = 0
    """Retries that were not made because they would have been too large a share of the requests."""
    resumed: int = 0
    """Streams that broke after their first token and went on elsewhere."""
    resumes: int = 0
    """Attempts that went on from delivered tokens, over all requests."""
    fallbacks: int = 0
    """Attempts that went through the router because a worker could not be reached directly."""
