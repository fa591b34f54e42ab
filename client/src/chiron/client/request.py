"""Turns keyword arguments into the messages of the wire, naming the argument that does not fit."""

from __future__ import annotations

import json
import re
import reprlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack, cast, get_type_hints

from google.protobuf import struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as ProtoMessage

from chiron.client.errors import InvalidRequest
from chiron.client.options import (
    Grammar,
    JsonObject,
    JsonSchema,
    Message,
    OneOf,
    Regex,
    RequestClass,
    RequestOptions,
    SamplingOptions,
    Slo,
    StructuredOutput,
)
from chiron.client.prefix import BYTES_PER_TOKEN, prefix_hashes
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message that routers and workers accept."""

_TOKENS_AROUND_MESSAGE = 4
"""Role and separators, in today's chat templates."""

_SAMPLING = frozenset(get_type_hints(SamplingOptions))
_KNOWN = frozenset(get_type_hints(RequestOptions))
_CLASSES = {
    RequestClass.INTERACTIVE: types_pb2.REQUEST_CLASS_INTERACTIVE,
    RequestClass.BATCH: types_pb2.REQUEST_CLASS_BATCH,
}
_TOOL_CHOICES = {
    "none": pb.TOOL_CHOICE_NONE,
    "auto": pb.TOOL_CHOICE_AUTO,
    "required": pb.TOOL_CHOICE_REQUIRED,
}
_EXPECTED = {
    FieldDescriptor.CPPTYPE_STRING: "a str",
    FieldDescriptor.CPPTYPE_BOOL: "a bool",
    FieldDescriptor.CPPTYPE_INT32: f"an int from {-(2**31)} to {2**31 - 1}",
    FieldDescriptor.CPPTYPE_UINT32: f"an int from 0 to {2**32 - 1}",
    FieldDescriptor.CPPTYPE_INT64: f"an int from {-(2**63)} to {2**63 - 1}",
    FieldDescriptor.CPPTYPE_UINT64: f"an int from 0 to {2**64 - 1}",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
}
"""What a field of each kind takes."""
_LISTS = ("prompt_token_ids", "messages", "tools")
_METADATA_KEY = re.compile(r"[a-z0-9_.-]+")


def build_request(**options: Unpack[RequestOptions]) -> pb.GenerateRequest:
    """The request that the keyword arguments describe, with a request id.

    Raises:
        InvalidRequest: a value does not fit its field, or not exactly one prompt is given. What fits is
            judged by the server, which knows the model.
        TypeError: an argument of this name does not exist.
    """
    unknown = sorted(options.keys() - _KNOWN)
    if unknown:
        raise TypeError(f"unknown argument: {', '.join(unknown)}")
    if not options.get("model"):
        raise InvalidRequest.of("model", "is required")
    request = pb.GenerateRequest()
    set_field(request, "request_id", options.get("request_id") or uuid.uuid4().hex)
    for name in ("model", "priority", "adapter"):
        set_field(request, name, options.get(name))
    _set_class(request, options.get("request_class"))
    _typed("slo", options.get("slo"), Slo, "a Slo")
    for name in _LISTS:
        _typed(name, options.get(name), Iterable, "a sequence")
    _set_input(request, options)
    slo = options.get("slo")
    if slo is not None:
        for name in ("ttft_ms", "itl_ms", "deadline_s"):
            set_field(request.slo, name, getattr(slo, name), "slo.")
    set_field(request.slo, "refuse_if_late", options.get("refuse_if_late"))
    _set_sampling(request.sampling, cast(Mapping[str, Any], options))
    if (size := request.ByteSize()) > MAX_MESSAGE_BYTES:
        raise InvalidRequest.of("request", f"is {size} bytes long; the limit is {MAX_MESSAGE_BYTES}")
    return request


def route_request(request: pb.GenerateRequest) -> pb.RouteRequest:
    """What a router must know to place `request`; the prompt itself stays here."""
    return pb.RouteRequest(
        request_id=request.request_id,
        model=request.model,
        request_class=request.request_class,
        slo=request.slo if request.HasField("slo") else None,
        priority=request.priority if request.HasField("priority") else None,
        adapter=request.adapter,
        prompt_tokens=estimate_prompt_tokens(request),
        max_tokens=request.sampling.max_tokens,
        choices=request.sampling.n,
        prefix_hashes=prefix_hashes(request),
    )


def estimate_prompt_tokens(request: pb.GenerateRequest) -> int:
    """Length of the prompt in tokens: exact for token ids, a guess from UTF-8 bytes for text.

    Of a chat, all counts that a template may render, and what it puts around each message.
    """
    kind = request.WhichOneof("input")
    if kind == "prompt_token_ids":
        return len(request.prompt_token_ids.ids)
    if kind == "prompt":
        return max(1, -(-len(request.prompt.encode()) // BYTES_PER_TOKEN))
    chat = request.chat
    size = chat.template_kwargs.ByteSize() + sum(tool.ByteSize() for tool in chat.tools)
    for message in chat.messages:
        size += len(message.content.encode()) + len(message.name.encode()) + len(message.tool_call_id)
        size += sum(call.ByteSize() for call in message.tool_calls)
    return max(1, -(-size // BYTES_PER_TOKEN)) + _TOKENS_AROUND_MESSAGE * len(chat.messages)


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata as gRPC wants it, its keys in lower case.

    Raises InvalidRequest naming the key that cannot travel.
    """
    checked = {}
    _typed("metadata", metadata, Mapping, "a mapping")
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InvalidRequest.of("metadata", f"{key!r}: {_shown(value)} is not text, or its key is not")
        lower = key.lower()
        if not _METADATA_KEY.fullmatch(lower) or lower.startswith("grpc-") or lower.endswith("-bin"):
            raise InvalidRequest.of("metadata", f"{key!r} is not a key of text metadata")
        if not (value.isascii() and value.isprintable()):
            raise InvalidRequest.of("metadata", f"the value of {key!r} must be printable ASCII")
        checked[lower] = value
    return checked


def set_field(message: ProtoMessage, name: str, value: object, path: str = "") -> None:
    """Sets a field; None is as good as left out. Raises InvalidRequest, with `path` before its name."""
    if value is None:
        return
    try:
        setattr(message, name, value)
    except UnicodeError as error:
        raise InvalidRequest.of(f"{path}{name}", str(error)) from error
    except (TypeError, ValueError) as error:
        expected = _EXPECTED[message.DESCRIPTOR.fields_by_name[name].cpp_type]
        raise InvalidRequest.of(f"{path}{name}", f"must be {expected}, not {_shown(value)}") from error


def _shown(value: object) -> str:
    """A value, shortened, and its type."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _typed(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raises InvalidRequest when the argument is of another kind; None is as good as left out."""
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest.of(name, f"must be {expected}, not {_shown(value)}")


def fit(field: str, assign: Callable[[], object]) -> None:
    """Runs an assignment; what protobuf refuses becomes an error about `field`."""
    try:
        assign()
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InvalidRequest.of(field, str(error)) from error


def _set_class(request: pb.GenerateRequest, value: str | None) -> None:
    if value is None:
        return
    try:
        request.request_class = _CLASSES[RequestClass(value)]
    except ValueError as error:
        names = ", ".join(each.value for each in RequestClass)
        raise InvalidRequest.of("request_class", f"must be one of {names}, not {value!r}") from error


def _set_input(request: pb.GenerateRequest, options: RequestOptions) -> None:
    prompt, ids, messages = (
        options.get("prompt"),
        options.get("prompt_token_ids"),
        options.get("messages"),
    )
    given = sum(each is not None for each in (prompt, ids, messages))
    if given != 1:
        raise InvalidRequest.of(
            "input", f"exactly one of prompt, prompt_token_ids or messages is required, {given} are given"
        )
    if messages is None:
        for name in ("tools", "template_kwargs", "tool_choice"):
            if options.get(name):
                raise InvalidRequest.of(name, "needs messages")
    if prompt is not None:
        set_field(request, "prompt", prompt)
    elif ids is not None:
        request.prompt_token_ids.SetInParent()
        fit("prompt_token_ids", partial(request.prompt_token_ids.ids.extend, ids))
    elif messages is not None:
        request.chat.SetInParent()
        for index, message in enumerate(messages):
            _add_message(request.chat, message, f"messages[{index}]")
        for index, tool in enumerate(options.get("tools") or ()):
            _set_struct(request.chat.tools.add(), tool, f"tools[{index}]")
        _set_tool_choice(request.chat, options.get("tool_choice"))
        set_field(request.chat, "parallel_tool_calls", options.get("parallel_tool_calls"))
        if template_kwargs := options.get("template_kwargs"):
            _set_struct(request.chat.template_kwargs, template_kwargs, "template_kwargs")


def _set_tool_choice(chat: pb.ChatInput, choice: object) -> None:
    if choice is None:
        return
    if isinstance(choice, str) and choice in _TOOL_CHOICES:
        chat.tool_choice = _TOOL_CHOICES[choice]
        return
    try:
        named = choice["function"]["name"]  # type: ignore[index]
    except (TypeError, KeyError):
        names = ", ".join(_TOOL_CHOICES)
        expected = f'one of {names} or {{"type": "function", "function": {{"name": ...}}}}'
        raise InvalidRequest.of("tool_choice", f"must be {expected}, not {_shown(choice)}") from None
    chat.tool_choice = pb.TOOL_CHOICE_NAMED
    set_field(chat, "named_tool", named)


def _add_message(chat: pb.ChatInput, message: Message | Mapping[str, Any], path: str) -> None:
    if not isinstance(message, Message):
        try:
            message = Message(**message)
        except TypeError as error:
            raise InvalidRequest.of(path, str(error).removeprefix("Message.__init__() ")) from error
    added = chat.messages.add()
    for name in ("role", "content", "name", "tool_call_id"):
        set_field(added, name, getattr(message, name), f"{path}.")
    # None is what others' clients write for none.
    for index, call in enumerate(message.tool_calls or ()):
        _set_struct(added.tool_calls.add(), call, f"{path}.tool_calls[{index}]")


def _set_struct(struct: struct_pb2.Struct, values: Mapping[str, Any], path: str) -> None:
    fit(path, lambda: struct.update(dict(values)))


def _set_sampling(sampling: pb.SamplingParams, options: Mapping[str, Any]) -> None:
    for name in sorted(_SAMPLING & options.keys()):
        value = options[name]
        field = f"sampling.{name}"
        if value is None:
            continue
        if name == "structured_output":
            _set_structured(sampling.structured_output, value)
        elif name == "logit_bias":
            fit(field, partial(sampling.logit_bias.update, value))
        elif name in ("stop", "stop_token_ids"):
            values: Sequence[Any] = (value,) if isinstance(value, str) else value
            _typed(field, values, Iterable, "a sequence")
            values = tuple(values)
            if name == "stop":
                for each in values:
                    _typed(field, each, str, "strings")
            fit(field, partial(getattr(sampling, name).extend, values))
        else:
            set_field(sampling, name, value, "sampling.")


def _set_structured(output: pb.StructuredOutput, value: StructuredOutput) -> None:
    field = "sampling.structured_output"
    match value:
        case JsonSchema(schema):
            fit(field, partial(_set_schema, output, schema))
        case JsonObject():
            output.json_object = True
        case Regex(pattern):
            set_field(output, "regex", pattern, f"{field}.")
        case Grammar(text):
            set_field(output, "grammar", text, f"{field}.")
        case OneOf(values):
            output.choice.SetInParent()
            fit(f"{field}.choice", partial(output.choice.values.extend, values))
        case _:
            raise InvalidRequest.of(field, f"must be a StructuredOutput, not {type(value).__name__}")


def _set_schema(output: pb.StructuredOutput, schema: Mapping[str, Any] | str) -> None:
    output.json_schema = schema if isinstance(schema, str) else json.dumps(schema)
