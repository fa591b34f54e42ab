"""What a text completion's body comes to, and what is said of one that does not fit."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from openai.types.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)

from chiron.v1 import inference_pb2 as pb
from services.router.http.completions.request import (
    ACCEPTED,
    MAX_PROMPTS,
    REFUSED,
    CompletionRequest,
    read_completion,
    to_generate,
    to_generates,
)
from services.router.http.errors import HttpError
from services.router.http.promises import Promises


def generates(**fields: Any) -> list[pb.GenerateRequest]:
    return to_generates(read_completion({"model": "m", "prompt": "once"} | fields), Promises())


def refused(**fields: Any) -> HttpError:
    with pytest.raises(HttpError) as caught:
        generates(**fields)
    assert caught.value.status == 400
    return caught.value


def test_every_parameter_of_the_official_client_is_served_accepted_or_refused() -> None:
    official = set(get_type_hints(CompletionCreateParamsStreaming))
    official |= set(get_type_hints(CompletionCreateParamsNonStreaming))
    served = {field.alias or name for name, field in CompletionRequest.model_fields.items()}
    assert official <= served | ACCEPTED | REFUSED.keys()
    assert not served & (ACCEPTED | REFUSED.keys())


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("once", ["once"]),
        (["once", "twice"], ["once", "twice"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["once"], ["once"]),
    ],
)
def test_each_prompt_is_a_request(prompt: object, inputs: list[object]) -> None:
    got = [
        each.prompt if each.WhichOneof("input") == "prompt" else list(each.prompt_token_ids.ids)
        for each in generates(prompt=prompt)
    ]
    assert got == inputs


def test_all_prompts_have_the_same_parameters() -> None:
    one, two = generates(prompt=["a", "b"], max_tokens=3, logprobs=2, seed=5)
    assert one.sampling == two.sampling == pb.SamplingParams(max_tokens=3, logprobs=2, seed=5)


def test_an_adapter_is_named_after_its_model() -> None:
    [message] = generates(model="base:tuned")
    assert (message.model, message.adapter) == ("base", "tuned")


def test_an_answer_has_sixteen_tokens_unless_more_are_asked_for() -> None:
    assert generates()[0].sampling.max_tokens == 16
    assert generates(max_tokens=40)[0].sampling.max_tokens == 40
    assert generates(max_completion_tokens=41)[0].sampling.max_tokens == 41


def test_the_requests_of_several_prompts_have_names_of_their_own() -> None:
    assert [each.request_id for each in generates(prompt=["a", "b"], request_id="x")] == ["x-0", "x-1"]
    assert [each.request_id for each in generates(request_id="x")] == ["x"]


def test_a_line_of_a_batch_has_one_prompt() -> None:
    request = read_completion({"model": "m", "prompt": ["a", "b"]})
    with pytest.raises(HttpError, match="single"):
        to_generate(request, Promises())
    assert to_generate(read_completion({"model": "m", "prompt": "a"}), Promises()).prompt == "a"


def test_the_best_of_as_many_as_are_returned_are_all_of_them() -> None:
    assert generates(n=3, best_of=3)[0].sampling.n == 3
    error = refused(n=1, best_of=3)
    assert error.param == "best_of"


def test_what_is_harmless_has_no_effect() -> None:
    assert generates(**dict.fromkeys(ACCEPTED, "anything"), echo=False, suffix=None) == generates()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_served_is_refused_by_name_with_a_reason(name: str) -> None:
    error = refused(**{name: {"x": 1}})
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
        ({"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
        ({"prompt": [1, True]}, "prompt[1]", "invalid_type"),
        ({"prompt": [True]}, "prompt[0]", "invalid_type"),
        ({"prompt": [[1], []]}, "prompt[1]", "invalid_value"),
        ({"prompt": [[1], [-1]]}, "prompt[1][0]", "invalid_value"),
        ({"prompt": [1, 2**32]}, "prompt[1]", "invalid_value"),
        ({"prompt": {"a": 1}}, "prompt", "invalid_type"),
        ({"prompt": ["x"] * (MAX_PROMPTS + 1)}, "prompt", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"echo": 0}, "echo", "unsupported_parameter"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = refused(**fields)
    assert (error.param, error.code) == (param, code)
