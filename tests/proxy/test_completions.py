"""Text completions, as the `openai` client and plain HTTP see them."""

import pytest
from openai import BadRequestError
from running_server import RunningServer


async def test_sixteen_tokens_unless_told_otherwise(server: RunningServer) -> None:
    reply = await server.client().completions.create(
        model="tiny", prompt="ab", temperature=0, logit_bias=server.spelling()
    )
    assert len(reply.choices[0].text) == 16
    assert reply.choices[0].finish_reason == "length"
    assert reply.object == "text_completion"


async def test_token_ids_and_text_are_the_same_prompt(server: RunningServer) -> None:
    client = server.client()
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    text = await client.completions.create(**asked, prompt="same")
    ids = await client.completions.create(**asked, prompt=server.backend.tokenizer.encode("same"))
    assert text.choices[0].text == ids.choices[0].text
    assert text.usage is not None and text.usage.prompt_tokens == 4


@pytest.mark.parametrize("as_ids", [False, True])
async def test_a_batch_is_ordered_by_prompt_then_sample(server: RunningServer, as_ids: bool) -> None:
    client = server.client()
    asked = {"model": "tiny", "seed": 11, "temperature": 1.5, "max_tokens": 8, "n": 2}
    encode = server.backend.tokenizer.encode
    prompts = [encode(text) if as_ids else text for text in ("one", "two", "three")]
    batch = await client.completions.create(**asked, prompt=prompts)  # type: ignore[arg-type]  # either kind
    assert [choice.index for choice in batch.choices] == list(range(6))
    alone = [await client.completions.create(**asked, prompt=text) for text in ("one", "two", "three")]
    assert [choice.text for choice in batch.choices] == [
        choice.text for reply in alone for choice in reply.choices
    ]
    assert batch.usage is not None and batch.usage.prompt_tokens == 11

    texts = [""] * 6
    async for chunk in await client.completions.create(**asked, prompt=prompts, stream=True):  # type: ignore[arg-type]
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in batch.choices]


async def test_logprobs_in_the_older_shape(server: RunningServer) -> None:
    client = server.client()
    asked = {"model": "tiny", "prompt": "ab", "temperature": 0, "max_tokens": 6, "logprobs": 2}
    asked["logit_bias"] = server.spelling()
    reply = await client.completions.create(**asked)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == reply.choices[0].text
    assert logprobs.text_offset == [0, 1, 2, 3, 4, 5]
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs or [], logprobs.top_logprobs, strict=True
    ):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3

    offsets: list[int] = []
    async for chunk in await client.completions.create(**asked, stream=True):
        streamed = chunk.choices[0].logprobs
        offsets += (streamed.text_offset or []) if streamed else []
    assert offsets == logprobs.text_offset


@pytest.mark.parametrize("prompt", [[], ["a", 1], [[1], "a"], [["a"]]])
async def test_prompts_of_no_known_form_are_refused(server: RunningServer, prompt: list[object]) -> None:
    with pytest.raises(BadRequestError) as refused:
        await server.client().completions.create(model="tiny", prompt=prompt)  # type: ignore[arg-type]  # on purpose
    assert (refused.value.param or "").startswith("prompt")


@pytest.mark.parametrize(("field", "value"), [("echo", True), ("suffix", "x"), ("best_of", 3)])
async def test_what_is_not_honoured_is_refused(server: RunningServer, field: str, value: object) -> None:
    with pytest.raises(BadRequestError) as refused:
        await server.client().completions.create(model="tiny", prompt="a", extra_body={field: value})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", field)
