"""How often one request is tried. Pure."""

from __future__ import annotations


class Attempts:
    """Counts the attempts of a request, and tells whether there may be one more.

    An attempt that got the stream further starts the count of fruitless ones anew, so that a long stream
    survives more faults than a short one, up to a bound of its own.
    """

    def __init__(self, most: int, most_resumes: int) -> None:
        """Starts with the first attempt.

        Args:
            most: attempts in a row without a new token, >= 1.
            most_resumes: attempts that go on from delivered tokens, in all; 0: none.
        """
        self._most = most
        self._most_resumes = most_resumes
        self._in_a_row = 0
        self._delivered = 0
        self.count = 1
        """Attempts so far, the present one included."""
        self.resumes = 0
        """Those of them that went on from delivered tokens."""
        self.number = 0
        """What servers know the present one by; it grows from one to the next."""

    @property
    def last(self) -> bool:
        """Whether none may follow unless the present one gets the stream further."""
        return self._in_a_row + 1 >= self._most

    @property
    def may_resume(self) -> bool:
        """Whether one more attempt may go on from delivered tokens."""
        return self.resumes < self._most_resumes

    def progressed(self, delivered_tokens: int) -> bool:
        """Whether the stream, with so many tokens, is further than at the last call."""
        further = delivered_tokens > self._delivered
        self._delivered = max(self._delivered, delivered_tokens)
        return further

    def another(self, *, progressed: bool, full: bool, resume: bool) -> bool:
        """The present attempt has failed: whether there may be one more.

        Args:
            progressed: it got the stream further.
            full: the instance had no room, which does not count.
            resume: the next one goes on from delivered tokens, else it begins again.
        """
        if progressed:
            self._in_a_row = 0
        self._in_a_row += not full
        return self._in_a_row < self._most and (self.may_resume or not resume)

    def begin(self, *, resume: bool) -> None:
        """The next attempt begins."""
        self.count += 1
        self.number += 1
        self.resumes += resume

    def outnumber(self, known: int) -> None:
        """A server knows the request by a newer attempt: a router that has gone made it."""
        self.number = max(self.number, known)
