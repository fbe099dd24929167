"""Predicted outputs: a text that the answer is likely to be comes back faster, and changes nothing."""

import re

import aiohttp
import openai
import pytest
from running_server import RunningServer

from penstock.proxy.prediction import PredictionCount

ASK = [{"role": "user", "content": "predict this"}]


async def accepted(server: RunningServer) -> int:
    async with aiohttp.ClientSession() as session, session.get(server.url + "/metrics") as reply:
        found = re.search(
            r'draft_accepted_tokens_total\{drafter="draft",model="tiny"\} ([\d.]+)', await reply.text()
        )
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
        assert reply.choices[0] == plain.choices[0]
        assert reply.usage and plain.usage and plain.usage.completion_tokens_details is None
        assert reply.usage.total_tokens == plain.usage.total_tokens
        details = reply.usage.completion_tokens_details
        assert details and details.accepted_prediction_tokens is not None
        # A wrong beginning costs as many tokens as it takes to find where the answer goes on in the prediction.
        assert details.accepted_prediction_tokens == 24 - 3 * wrong
        assert details.rejected_prediction_tokens == 4 * wrong
    assert await accepted(server) >= before + 15


@pytest.mark.parametrize(
    ("prediction", "answer", "accepted"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 4),
        ([1, 2, 3, 4], [1, 2, 9, 9], 2),
        ([1, 2, 3, 4], [], 0),
        ([1, 2, 3, 4, 5, 6], [9, 1, 2, 3, 4, 5, 6], 3),
        ([1, 2, 3, 4], [1, 2, 3, 4, 1, 2, 3, 4], 4),
    ],
)
def test_what_came_true_is_counted_however_it_came(
    prediction: list[int], answer: list[int], accepted: int
) -> None:
    for size in (1, 3, 100):
        count = PredictionCount(prediction)
        for start in range(0, len(answer), size):
            count.add(answer[start : start + size])
        assert (count.accepted, count.rejected) == (accepted, len(prediction) - accepted)


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
