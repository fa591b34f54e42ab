"""What a proxied stream has passed on so far: enough to have another instance go on from it. Pure."""

from __future__ import annotations

from array import array

from google.protobuf.message import DecodeError

from chiron.requests.tools import constrains_calls
from chiron.v1 import inference_pb2 as pb

_UNREAD_BYTES = 16 * 1024
"""Messages pile up unread to this size; then only their token ids and the length of their text are kept."""


class Delivered:
    """Follows one call of a caller. Passing a message on costs an append; it is read when it must be.

    Two responses merge by joining their bytes, so that a pile of them is one message.
    """

    def __init__(self, request: pb.GenerateRequest) -> None:
        """`request` as it came: what earlier calls of the same caller delivered is in it."""
        self.obstacle = "it has several choices" if request.sampling.n > 1 else ""
        """Why the stream cannot be resumed, so that nothing is kept of it; empty: it can."""
        self.may_move = not (
            self.obstacle or _depends_on_its_engine(request.sampling) or constrains_calls(request)
        )
        """Whether any engine can go on with it."""
        self.begun = bool(request.resume.delivered_token_ids)
        """Whether the caller has a token, also of an earlier call."""
        self.sent = False
        """Whether this call has passed a message on."""
        self.preemptions = request.resume.origin.preemptions
        """How often it was preempted at the instances that have handed it back."""
        self._unread = bytearray()
        self._tokens = array("I")
        self._text_length = request.resume.delivered_text_length
        self._origin = request.resume.origin
        self._last: pb.OutputDelta | None = None
        self._known = 0

    def add(self, message: bytes) -> None:
        """A message is on its way to the caller."""
        self.begun = self.sent = True
        if not self.obstacle:
            self._unread += message
            if len(self._unread) > _UNREAD_BYTES:
                self._read()

    def progressed(self) -> bool:
        """Whether a token was passed on since the last call."""
        self._read()
        known, self._known = self._known, len(self._tokens)
        return self._known > known

    @property
    def complete(self) -> bool:
        """True once the last message was passed on."""
        return self.last is not None

    @property
    def last(self) -> pb.OutputDelta | None:
        """What tells how the answer was served, once it was passed on whole; None: nothing is kept of it."""
        self._read()
        return self._last

    @property
    def spec_version(self) -> int:
        """Of the worker that began the stream; 0: it did not say."""
        self._read()
        return self._origin.spec_version

    def state(self, spec_version: int) -> pb.ResumeState:
        """What another instance must be told besides the request as it came, by merging this into it.

        Args:
            spec_version: of the model's spec that the stream began on; 0: unknown.
        """
        self._read()
        state = pb.ResumeState(delivered_token_ids=self._tokens, delivered_text_length=self._text_length)
        state.origin.CopyFrom(self._origin)
        if self.preemptions:
            state.origin.preemptions = self.preemptions
        if spec_version:
            state.origin.spec_version = spec_version
        return state

    def _read(self) -> None:
        if not self._unread:
            return
        unread = bytes(self._unread)
        self._unread.clear()
        try:
            message = pb.GenerateResponse.FromString(unread)
        except DecodeError:
            self.obstacle = "what it delivered cannot be read"
            return
        for delta in message.deltas:
            self._tokens.extend(delta.token_ids)
            self._text_length += len(delta.text)
            if delta.HasField("origin"):
                self._origin = delta.origin
            if delta.HasField("usage"):
                self._last = delta


def _depends_on_its_engine(sampling: pb.SamplingParams) -> bool:
    """Whether there are engines that keep what has to be known of the past to themselves."""
    greedy = sampling.HasField("temperature") and sampling.temperature == 0
    return bool(
        (sampling.HasField("seed") and not greedy)
        or sampling.HasField("structured_output")
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )
