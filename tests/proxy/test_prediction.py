"""Predicted outputs: a text that the answer is likely to be comes back faster, and changes nothing."""

import re

import aiohttp
import openai
import pytest
from running_server import RunningServer

ASK = [{"role": "user", "content": "predict this"}]


async def accepted(server: RunningServer) -> int:
    async with aiohttp.ClientSession() as session, session.get(server.url + "/metrics") as reply:
        found = re.search(r'draft_accepted_tokens_total\{drafter="draft"\} ([\d.]+)', await reply.text())
        return int(float(found.group(1))) if found else 0


@pytest.mark.parametrize("as_parts", [False, True])
async def test_a_right_prediction_is_accepted_and_changes_nothing(
    server: RunningServer, as_parts: bool
) -> None:
    client = server.client()
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 24, "temperature": 1, "seed": 5}
    asked["logit_bias"] = server.spelling()
    asked["extra_body"] = {"penstock": {"cache": {"no_cache": True, "no_store": True}}}
    plain = await client.chat.completions.create(**asked)
    content = plain.choices[0].message.content or ""
    text = [{"type": "text", "text": content[:9]}, {"type": "text", "text": content[9:]}]
    before = await accepted(server)
    for wrong in (False, True):
        prediction = {"type": "content", "content": "h" + content if wrong else text if as_parts else content}
        reply = await client.chat.completions.create(**asked, prediction=prediction)
        assert reply.choices[0] == plain.choices[0] and reply.usage == plain.usage
    assert await accepted(server) >= before + 15


async def test_a_prediction_is_no_part_of_the_caches_key(server: RunningServer) -> None:
    client = server.client()
    # Stops at the first letter whichever it is, so that the completion is whole and cached.
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 8, "temperature": 0, "stop": list("abcdefgh ")}
    asked["logit_bias"] = server.spelling()
    await client.chat.completions.create(**asked, prediction={"type": "content", "content": "x"})
    raw = await client.chat.completions.with_raw_response.create(
        **asked, extra_body={"penstock": {"drafters": []}}
    )
    assert raw.headers["x-penstock-cache"] == "hit"


@pytest.mark.parametrize(
    "wrong",
    [
        {"prediction": {"type": "audio", "content": "x"}},
        {"prediction": {"type": "content", "content": [{"type": "image", "text": "x"}]}},
        {"penstock": {"drafters": ["parrot"]}},
        {"penstock": {"drafter": []}},
    ],
)
async def test_what_is_no_prediction_is_refused(server: RunningServer, wrong: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await server.client().chat.completions.create(model="tiny", messages=ASK, extra_body=wrong)
    assert next(iter(wrong)) in str(refused.value) or "drafters" in str(refused.value)
