"""What a caller may ask for: everything else is refused by name, and nothing of another type gets further."""

from typing import Any

import msgspec
import pytest

from penstock.errors import InvalidRequestError
from penstock.scheduler import SamplingParams
from penstock.scheduler.sampling_params import checked_token_ids


@pytest.mark.parametrize(
    "wrong",
    [
        {"stop": "ab"},
        {"stop": [1]},
        {"stop": ["x"] * 65},
        {"n": 1.5},
        {"n": True},
        {"temperature": "0"},
        {"max_tokens": 3.0},
        {"seed": "1"},
        {"logit_bias": {"5": 1.0}},
        {"stop_token_ids": 7},
        {"ignore_eos": 1},
        {"repetition_penalty": 1e-40},
        {"repetition_penalty": 1e39},
    ],
)
def test_values_of_another_type_or_size_are_refused_by_name(wrong: dict[str, Any]):
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**wrong)
    assert caught.value.param == next(iter(wrong)) and caught.value.param in caught.value.message


def test_what_means_the_same_becomes_the_same():
    assert SamplingParams(stop=["a"], stop_token_ids=[5], temperature=0) == SamplingParams(
        stop=("a",), stop_token_ids=(5,), temperature=0.0
    )


def test_they_travel_unchanged():
    params = SamplingParams(stop=("a",), logit_bias={5: -100}, seed=2**64 - 1, top_k=3, logprobs=2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize("prompt", [["x"], [1.5], [2**70], [True], "text", None, 5])
def test_a_prompt_is_a_list_of_integers(prompt: object):
    with pytest.raises(InvalidRequestError, match="list of token ids"):
        checked_token_ids(prompt)
