"""Priorities and deadlines over HTTP: honoured, or refused in OpenAI's error shape with a Retry-After."""

import openai
import pytest
from running_server import RunningServer

ASK = [{"role": "user", "content": "soon"}]


async def test_a_deadline_that_is_missed_is_an_error_that_may_be_retried(server: RunningServer) -> None:
    with pytest.raises(openai.RateLimitError) as late:
        await server.client().chat.completions.create(
            model="tiny",
            messages=ASK,
            logit_bias=server.spelling(),
            extra_body={"penstock": {"deadline": 0.0001}},
        )
    assert late.value.body["code"] == "overloaded" and "deadline" in late.value.body["message"]
    assert float(late.value.response.headers["retry-after"]) > 0
    await server.idle()


async def test_urgency_changes_no_answer(server: RunningServer) -> None:
    asked = {
        "model": "tiny",
        "messages": ASK,
        "max_tokens": 8,
        "temperature": 0,
        "logit_bias": server.spelling(),
    }
    client = server.client()
    plain = await client.chat.completions.create(**asked)
    urgent = await client.chat.completions.create(
        **asked, extra_body={"penstock": {"priority": -3, "ttft_deadline": 60, "deadline": 60}}
    )
    assert urgent.choices == plain.choices


@pytest.mark.parametrize(
    "wrong", [{"priority": 100}, {"priority": "high"}, {"deadline": -1}, {"ttft_deadline": "x"}]
)
async def test_what_is_no_urgency_is_refused_by_name(server: RunningServer, wrong: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await server.client().chat.completions.create(
            model="tiny", messages=ASK, extra_body={"penstock": wrong}
        )
    (name,) = wrong
    assert refused.value.param == name and name in refused.value.body["message"]
