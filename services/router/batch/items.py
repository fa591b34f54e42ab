"""Checks the items of a batch and turns them into what the queue keeps. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chiron.auth.callers import Caller
from chiron.batch import wire
from chiron.batch.records import Limits, NewItem
from chiron.client.request import estimate_prompt_tokens
from chiron.internal.v1 import control_pb2
from chiron.requests.tools import no_parser, parses_calls
from chiron.requests.validation import Violation, check_generate, check_sampling
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import batch_pb2 as pb
from chiron.v1 import inference_pb2, types_pb2

_LONGEST_ID = 128
_MOST_VERDICTS = 1024
"""Models with adapter and priority whose verdict is kept; a batch has a few."""
_UNSET = frozenset({"request_id", "ticket", "attempt", "elapsed_ms", "resume"})
"""Fields of a GenerateRequest that the router sets when it works on the item."""
_CLASSES = (types_pb2.REQUEST_CLASS_UNSPECIFIED, types_pb2.REQUEST_CLASS_BATCH)

Models = Callable[[str], control_pb2.RoutedModel | None]


@dataclass(frozen=True, slots=True)
class Wrong:
    """An item that cannot be worked on."""

    index: int
    violations: tuple[Violation, ...]
    """Paths begin below the item."""
    reason: Reason = Reason.INVALID_ARGUMENT

    def failure(self) -> bytes:
        """Its result where invalid items fail by themselves; it does not depend on the time."""
        text = "; ".join(f"{field}: {what}" for field, what in self.violations)
        below = [(field.removeprefix("request."), what) for field, what in self.violations]
        return wire.failed(self.reason.name, text, below)


class ItemChecker:
    """Checks the items of one batch."""

    def __init__(
        self,
        caller: Caller | None,
        models: Models,
        limits: Limits,
        *,
        fail_invalid: bool,
        items: int = 0,
    ) -> None:
        """A checker.

        Args:
            caller: whose batch it is; None: tenancy is off.
            models: the router's table.
            limits: of the queue.
            fail_invalid: keep invalid items with their failure, instead of telling what is wrong with them.
            items: how many the header announces; 0: it does not say.
        """
        self._caller = caller
        self._models = models
        self._body_bytes = limits.body_bytes
        self._items, self._most_items = items, limits.items_per_batch
        self._fail_invalid = fail_invalid
        self._verdicts: dict[tuple[str, str, int], tuple[Reason, Violation] | None] = {}
        self._samplings: dict[bytes, list[Violation]] = {}

    def check(self, item: pb.BatchItem) -> NewItem | Wrong:
        """What the queue is to keep, or what is wrong with the item.

        An index or custom_id that cannot be kept is wrong also where invalid items fail by themselves.
        """
        if found := self._check_identity(item):
            return Wrong(item.index, tuple(found))
        custom_id = item.custom_id or str(item.index)
        wrong = self._check_work(item)
        if wrong is None:
            request = item.request
            body = wire.body_of(request)
            if not self._body_bytes or len(body) <= self._body_bytes:
                return NewItem(
                    index=item.index,
                    custom_id=custom_id,
                    model=request.model,
                    prompt_tokens=estimate_prompt_tokens(request),
                    max_tokens=request.sampling.max_tokens * max(1, request.sampling.n),
                    body=body,
                )
            text = f"is {len(body)} bytes long; the limit is {self._body_bytes}"
            wrong = Wrong(item.index, (("request", text),))
        if not self._fail_invalid:
            return wrong
        return NewItem(item.index, custom_id, "", 0, 0, b"", wrong.failure())

    def _check_identity(self, item: pb.BatchItem) -> list[Violation]:
        found: list[Violation] = []
        if self._items and item.index >= self._items:
            found.append(("index", f"must be below {self._items}, the number of items in the header"))
        elif self._most_items and item.index >= self._most_items:
            found.append(("index", f"a batch has at most {self._most_items} items"))
        if (length := len(item.custom_id)) > _LONGEST_ID:
            found.append(("custom_id", f"must have at most {_LONGEST_ID} characters, not {length}"))
        elif (
            unseen := next((at for at in enumerate(item.custom_id) if not at[1].isprintable()), None)
        ) is not None:
            place, character = unseen
            what = f"U+{ord(character):04X} at character {place + 1}"
            found.append(("custom_id", f"must be printable, and has {what}"))
        return found

    def _check_work(self, item: pb.BatchItem) -> Wrong | None:
        if item.malformed:
            return Wrong(item.index, (("malformed", item.malformed),))
        if not item.HasField("request"):
            return Wrong(item.index, (("request", "is required"),))
        request = item.request
        found = check_generate(request, self._check_sampling)
        found += [
            (field.name, "must be unset: the router sets it")
            for field, _ in request.ListFields()
            if field.name in _UNSET
        ]
        if request.request_class not in _CLASSES:
            found.append(("request_class", "must be unset or batch"))
        if request.slo.HasField("deadline_s"):
            found.append(("slo.deadline_s", "must be unset: the batch has the deadline"))
        if found:
            return Wrong(item.index, tuple((f"request.{field}", text) for field, text in found))
        verdict = self._verdict(request)
        if verdict is None and parses_calls(request) and not self._has_parser(request.model):
            field, text = no_parser(request.model)
            verdict = Reason.INVALID_ARGUMENT, (f"request.{field}", text)
        return None if verdict is None else Wrong(item.index, (verdict[1],), verdict[0])

    def _has_parser(self, model: str) -> bool:
        routed = self._models(model)
        return routed is not None and bool(routed.tool_parser)

    def _check_sampling(self, sampling: inference_pb2.SamplingParams) -> list[Violation]:
        """Items mostly share their parameters, and to check these takes longer than all else."""
        key = sampling.SerializeToString(deterministic=True)
        if (known := self._samplings.get(key)) is None:
            if len(self._samplings) >= _MOST_VERDICTS:
                self._samplings.clear()
            known = self._samplings[key] = check_sampling(sampling)
        return known

    def _verdict(self, request: inference_pb2.GenerateRequest) -> tuple[Reason, Violation] | None:
        """What stands against the model, its adapter and the priority; None: nothing."""
        key = request.model, request.adapter, request.priority
        if key not in self._verdicts:
            if len(self._verdicts) >= _MOST_VERDICTS:
                self._verdicts.clear()
            self._verdicts[key] = self._judge(*key)
        return self._verdicts[key]

    def _judge(self, model: str, adapter: str, priority: int) -> tuple[Reason, Violation] | None:
        if self._caller is not None:
            try:
                self._caller.check_allowed(model, types_pb2.REQUEST_CLASS_BATCH, priority)
            except ChironError as error:
                return error.reason, ("request", error.message)
        routed = self._models(model)
        if routed is None:
            return Reason.MODEL_NOT_FOUND, ("request.model", f"unknown model {model!r}")
        if adapter and adapter not in routed.adapters:
            text = f"model {model!r} has no adapter {adapter!r}"
            return Reason.ADAPTER_NOT_FOUND, ("request.adapter", text)
        return None
