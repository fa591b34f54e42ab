"""Tool calls by vLLM's own parsers, composed and fed as its OpenAI server does it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chiron.requests.tools import one_call
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import EngineConfig, EngineLoadError, InvalidRequestError
from services.worker.engines.calls import CallParser, Calls
from services.worker.engines.vllm.compat import check_parsing
from services.worker.engines.vllm.prompts import PromptTokenizer, plain_messages, plain_struct
from services.worker.engines.vllm.sampling import client_error_type, structured_params

_CHOICES = {pb.TOOL_CHOICE_AUTO: "auto", pb.TOOL_CHOICE_REQUIRED: "required"}


class ToolSupport:
    """The parsers of one model."""

    def __init__(self, parser: Any, tokenizer: Any, model_config: Any, *, reasons: bool) -> None:
        """Use `load`. `parser` is a class of vLLM's."""
        self._parser = parser
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._reasons = reasons

    @classmethod
    def load(cls, config: EngineConfig, llm: Any, prompts: PromptTokenizer) -> ToolSupport | None:
        """The parsers that the spec names; None: it names none for tools.

        Raises EngineLoadError where the tokenizer or the chat template is not made for them.
        """
        if not config.tool_parser:
            return None
        if not prompts.knows_tools():
            raise EngineLoadError("tool_parser: the model's chat template does not show tools to the model")
        model_config, tokenizer = llm.vllm_config.model_config, llm.get_tokenizer()
        try:
            check_parsing()
            from vllm.parser.parser_manager import ParserManager

            parser = ParserManager.get_parser(
                tool_parser_name=config.tool_parser,
                reasoning_parser_name=config.reasoning_parser,
                enable_auto_tools=True,
                model_name=model_config.model,
                is_harmony=model_config.hf_config.model_type == "gpt_oss",
            )
            found = cls(parser, tokenizer, model_config, reasons=bool(config.reasoning_parser))
            found._make(None, {})
        except Exception as error:
            # Each parser has exceptions of its own for a tokenizer that lacks its tokens.
            text = " ".join(str(error).split())
            raise EngineLoadError(f"tool_parser: {config.tool_parser!r} does not fit: {text}") from error
        return found

    def calls(self, request: pb.GenerateRequest) -> Calls:
        """See `Engine.calls`."""
        variables = plain_struct(request.chat.template_kwargs)
        try:
            asked = self._request(request)
            adjusted = self._make(asked.tools, variables).adjust_request(asked)
        except (ValueError, TypeError, client_error_type()) as error:
            raise InvalidRequestError("chat.tools", " ".join(str(error).split())) from error
        sampling = pb.SamplingParams()
        sampling.CopyFrom(request.sampling)
        sampling.keep_special_tokens = not adjusted.skip_special_tokens
        _constrain(sampling, adjusted.structured_outputs)
        return Calls(sampling, lambda prompt: self._choice(adjusted, variables, prompt))

    def _choice(self, asked: Any, variables: dict[str, Any], prompt: Sequence[int]) -> CallParser:
        return VllmCallParser(self._make(asked.tools, variables), asked, prompt, reasons=self._reasons)

    def _make(self, tools: Any, variables: dict[str, Any]) -> Any:
        return self._parser(
            self._tokenizer, tools, chat_template_kwargs=variables, model_config=self._model_config
        )

    def _request(self, request: pb.GenerateRequest) -> Any:
        """What vLLM's server would have been asked."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        chat, sampling = request.chat, request.sampling
        named = {"type": "function", "function": {"name": chat.named_tool}}
        tools = [plain_struct(tool) for tool in chat.tools]
        if chat.tool_choice != pb.TOOL_CHOICE_AUTO:
            # The call is constrained as it is: to its schema, too, where the tool does not say otherwise.
            for tool in tools:
                tool["function"].setdefault("strict", True)
        asked = ChatCompletionRequest(
            messages=[],
            tools=tools,
            tool_choice=_CHOICES.get(chat.tool_choice, named),
            parallel_tool_calls=not one_call(chat),
            skip_special_tokens=not sampling.keep_special_tokens,
            structured_outputs=structured_params(sampling),
        )
        # They have been checked; some parsers count the calls in them.
        asked.messages = plain_messages(chat)
        return asked


class VllmCallParser(CallParser):
    """One of vLLM's parsers, for one choice."""

    def __init__(self, parser: Any, asked: Any, prompt: Sequence[int], *, reasons: bool) -> None:
        """`asked`: the request as the parser has adjusted it; `reasons`: it tells reasoning apart, too."""
        self._parser = parser
        self._asked = asked
        self._prompt = list(prompt)
        self._reasons = reasons
        self._text = ""
        self._content = ""
        self._called = False

    def feed(self, token_ids: Sequence[int], text: str, *, finished: bool) -> pb.ParsedDelta:
        """See `CallParser.feed`."""
        found = self._parser.parse_delta(text, list(token_ids), self._asked, self._prompt, finished=finished)
        out = pb.ParsedDelta()
        if found is not None:
            out.content, out.reasoning = found.content or "", found.reasoning or ""
            for call in found.tool_calls:
                function = call.function
                out.tool_calls.add(
                    index=call.index,
                    id=call.id or "",
                    name=(function.name if function else "") or "",
                    arguments=(function.arguments if function else "") or "",
                )
        if not (self._reasons or self._called):
            self._without_calls(out, text, finished=finished)
        return out

    def _without_calls(self, out: pb.ParsedDelta, text: str, *, finished: bool) -> None:
        """Without any call all text is content, also what a parser has held back and forgotten."""
        self._called = bool(out.tool_calls)
        self._text += text
        self._content += out.content
        if finished and not self._called and self._text.startswith(self._content):
            out.content += self._text[len(self._content) :]


def _constrain(sampling: pb.SamplingParams, wanted: Any) -> None:
    """Takes over vLLM's constraint; one of the request's own stays as it was."""
    if wanted is None or wanted == structured_params(sampling):
        return
    output = sampling.structured_output
    output.Clear()
    if wanted.structural_tag is not None:
        output.structural_tag = wanted.structural_tag
    elif wanted.json is not None:
        output.json_schema = wanted.json if isinstance(wanted.json, str) else json.dumps(wanted.json)
    elif wanted.grammar is not None:
        output.grammar = wanted.grammar
    elif wanted.regex is not None:
        output.regex = wanted.regex
    else:
        raise InvalidRequestError("chat.tools", "vLLM constrains these calls in a form that is not known")
