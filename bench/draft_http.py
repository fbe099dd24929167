"""What a draft that is right saves over HTTP: tokens a second of one client's answers with it, and without any.

    python bench/draft_http.py                       the built-in model, 64 tokens asked for, 64 answered

The draft is the answer, known before, and comes with the request as OpenAI's predicted output. Both take turns; every
answer must be the same as without.
"""

import argparse
import asyncio
import statistics
import time
from typing import Any

import aiohttp
from load_client import LoadPlan, SyntheticPrompts, fit_words

from penstock.tune.own_server import own_server

TOKENS = 64
WARM_UP = 3


async def ask(session: aiohttp.ClientSession, url: str, question: str, **fields: Any) -> tuple[str, float]:
    """The answer, and seconds until it was there."""
    body = {"model": "builtin", "messages": [{"role": "user", "content": question}], "temperature": 0}
    body |= {"max_tokens": TOKENS, "ignore_eos": True, **fields}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
        content = await reply.json()
        assert reply.status == 200, content
        assert content["usage"]["completion_tokens"] == TOKENS
        return content["choices"][0]["message"]["content"], time.perf_counter() - began


async def measure(url: str, count: int) -> tuple[list[float], list[float]]:
    """Seconds of each answer, without and with its draft."""
    words = await fit_words(LoadPlan(prompt=SyntheticPrompts(1), url=f"{url}/v1"), TOKENS)
    prompts = SyntheticPrompts(words)
    alone, drafted = [], []
    headers = {"x-penstock-cache-control": "no-cache, no-store"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for number in range(-WARM_UP, count):
            question, nobody = prompts(number), {"penstock": {"drafters": []}}
            # From here on its prompt is in the prefix cache, for both.
            answer, _ = await ask(session, url, question, **nobody)
            same, without = await ask(session, url, question, **nobody)
            right, with_draft = await ask(
                session, url, question, prediction={"type": "content", "content": answer}
            )
            assert same == right == answer
            if number >= 0:
                alone.append(without)
                drafted.append(with_draft)
    return alone, drafted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="questions")
    args = parser.parse_args()
    with own_server(["--model", "builtin", "--no-cache"]) as url:
        alone, drafted = (
            TOKENS / statistics.median(taken) for taken in asyncio.run(measure(url, args.count))
        )
    print(f"{drafted:,.0f} tokens/s, without the draft {alone:,.0f}: {drafted / alone:.2f}x")


if __name__ == "__main__":
    main()
