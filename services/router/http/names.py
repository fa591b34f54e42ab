"""What fields of GenerateRequest are called in the bodies of this API: errors name them so. Pure."""

from __future__ import annotations

from collections.abc import Mapping

_BOTH = {
    "adapter": "model",
    "sampling": "",
    "sampling.include_stop": "include_stop_str_in_output",
    "sampling.keep_special_tokens": "skip_special_tokens",
    "sampling.structured_output": "response_format",
}
CHAT: Mapping[str, str] = _BOTH | {
    "input": "messages",
    "chat": "messages",
    "chat.messages": "messages",
    "chat.tools": "tools",
    "chat.tool_choice": "tool_choice",
    "chat.named_tool": "tool_choice",
    "chat.parallel_tool_calls": "parallel_tool_calls",
    "chat.template_kwargs": "chat_template_kwargs",
    "chat.template_kwargs.reasoning_effort": "reasoning_effort",
    "sampling.logprobs": "top_logprobs",
}
COMPLETION: Mapping[str, str] = _BOTH | {"input": "prompt", "prompt_token_ids": "prompt"}
"""See `errors.of_chiron`."""
