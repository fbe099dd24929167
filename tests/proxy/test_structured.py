"""Structured output over HTTP, with OpenAI's own client."""

import json
import re
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from running_server import RunningServer

ASK = [{"role": "user", "content": "give me json"}]


class Person(BaseModel):
    age: int
    is_admin: bool


def bias(server: RunningServer) -> dict[str, int]:
    """A random model would write digits and white space for ever."""
    ends = {str(server.token_id(text)): 5 for text in "}],"}
    return ends | {str(server.token_id(text)): -100 for text in (" ", "\n", "\t", "\r")}


async def test_a_pydantic_model_comes_back(server: RunningServer) -> None:
    reply = await server.client().chat.completions.parse(
        model="tiny", messages=ASK, response_format=Person, temperature=1, seed=3, max_tokens=200,
        logit_bias=bias(server),
    )  # fmt: skip
    assert isinstance(reply.choices[0].message.parsed, Person)
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_any_json_object(server: RunningServer, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": ASK, "response_format": {"type": "json_object"}, "temperature": 1, "seed": 4,
        "max_tokens": 400, "logit_bias": {**bias(server), str(server.token_id("}")): 100},
    }  # fmt: skip
    if stream:
        chunks = [
            chunk async for chunk in await server.client().chat.completions.create(**asked, stream=True)
        ]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    else:
        text = (await server.client().chat.completions.create(**asked)).choices[0].message.content or ""
    assert isinstance(json.loads(text), dict)


async def test_regexes_and_grammars_in_both_endpoints(server: RunningServer) -> None:
    client = server.client()
    reply = await client.completions.create(
        model="tiny", prompt="a", temperature=1, seed=1, extra_body={"guided_regex": "[xyz]{4}"}
    )
    assert re.fullmatch("[xyz]{4}", reply.choices[0].text)
    chat = await client.chat.completions.create(
        model="tiny", messages=ASK, temperature=1, seed=1, n=2,
        extra_body={"guided_grammar": 'start: "yes" | "no"'},
    )  # fmt: skip
    assert {choice.message.content for choice in chat.choices} <= {"yes", "no"}


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        (
            {"response_format": {"type": "json_schema"}},
            "response_format",
            "there is no response_format.json_schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "what"}},
                }
            },
            "response_format",
            "Invalid type: what",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "yaml"),
        ({"guided_regex": "("}, "guided_regex", "cannot be compiled"),
        ({"guided_regex": "a", "guided_grammar": 'start: "a"'}, "guided_grammar", "can obey one of them"),
        ({"guided_regex": "a", "min_tokens": 3}, "min_tokens", "a grammar decides"),
    ],
)
async def test_what_is_wrong_is_named(server: RunningServer, wrong: dict, param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await server.client().chat.completions.create(model="tiny", messages=ASK, extra_body=wrong)
    assert refused.value.param == param
    assert said in refused.value.body["message"]
    await server.idle()
