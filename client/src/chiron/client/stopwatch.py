"""Client-side times of a stream: to the first token and between tokens. Pure: the caller tells the time."""

from __future__ import annotations


class Stopwatch:
    """Takes the arrivals of one attempt's tokens; the start is the request's, earlier attempts included."""

    def __init__(self, started_s: float) -> None:
        """Starts at `started_s`, in seconds of the caller's monotonic clock."""
        self._started_s = started_s
        self._first_s: float | None = None
        self._latest_s: dict[int, float] = {}
        self._span_s = 0.0
        self._gaps = 0
        self._longest_s = 0.0

    def tokens(self, choice: int, count: int, now_s: float) -> None:
        """`count` >= 1 tokens of a choice have arrived together."""
        if self._first_s is None:
            self._first_s = now_s
        latest_s = self._latest_s.get(choice)
        self._latest_s[choice] = now_s
        if latest_s is None:
            self._gaps += count - 1
            return
        waited_s = now_s - latest_s
        self._span_s += waited_s
        self._gaps += count
        self._longest_s = max(self._longest_s, waited_s)

    @property
    def ttft_ms(self) -> float:
        """From the start to the first token; 0 without one."""
        return 0.0 if self._first_s is None else (self._first_s - self._started_s) * 1e3

    @property
    def itl_mean_ms(self) -> float:
        """Mean time between a choice's tokens; 0 where no choice has two."""
        return self._span_s / self._gaps * 1e3 if self._gaps else 0.0

    @property
    def itl_max_ms(self) -> float:
        """Longest time between two arrivals of one choice."""
        return self._longest_s * 1e3

    def since_start_ms(self, now_s: float) -> float:
        """From the start to `now_s`."""
        return (now_s - self._started_s) * 1e3
