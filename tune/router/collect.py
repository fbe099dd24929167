"""Both tiers' answers to a workload, asked over HTTP as an app would, so that upstreams and local tiers are alike.

What is kept already is not asked again. Greedy, past the cache. The first questions are asked one at a time, the tiers in
turn: what an answer takes is timed on these. To time drafts, the large tier is asked these twice, once with the small one's
answer as its predicted output, which is how a cascade hands it over; which comes first alternates, because the second finds
the prompt computed.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from ...errors import TuneError
from .answers import Answer, AnswersFile, logprobs_asked, read_reply
from .workload import Item

TIMED = 24
# What is kept of a question: both tiers' answers, and the large one's when it has a draft.
SMALL, LARGE, DRAFTED = 0, 1, 2
# The question is at fault, and another may be answered.
_REFUSED = {400, 413, 422}
_AGAIN = {408, 429, 500, 502, 503, 504}
_TRIES = 6
_LONGEST_WAIT = 30.0
# Texts embedded at once.
_BATCH = 64

Progress = Callable[[str, int, int], None]


class Tier(msgspec.Struct, frozen=True):
    """Where a tier is asked.

    Attributes:
        url: of the server, without /v1.
        model: as it is asked for there.
    """

    url: str
    model: str
    api_key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        # Only Penstock reads the first: an answer from a cache tells nothing of the tier, and has no cost.
        headers = {"x-penstock-cache-control": "no-cache, no-store"}
        return headers | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})


async def collect(
    tiers: tuple[Tier, Tier],
    items: Sequence[Item],
    file: AnswersFile,
    *,
    max_tokens: int,
    concurrency: int,
    drafts: bool,
    progress: Progress,
) -> None:
    """Returns when both tiers have answered, or refused, every question.

    `drafts`: the large tier takes a predicted output.

    Raises TuneError where a server cannot be reached, keeps failing, or does not know the tier. `file` keeps what there is.
    """
    everything = [(place, tier) for place, item in enumerate(items) for tier in _order(place, item, drafts)]
    todo = [one for one in everything if one not in file.answers]
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def ask(one: tuple[int, int], *, alone: bool) -> None:
            place, kind = one
            item, tier = items[place], tiers[min(kind, LARGE)]
            body = {"temperature": 0, "max_tokens": max_tokens, **item.body}
            if kind == SMALL:
                body |= logprobs_asked(item.path)
            elif kind == DRAFTED:
                body["prediction"] = {"type": "content", "content": file.answers[place, SMALL].text or ""}
            told = await _told(session, tier, item.path, body)
            file.keep(Answer(question=place, kind=kind, alone=alone, **told))
            progress("answers", len(file.answers), len(everything))

        timed = [one for one in todo if one[0] < TIMED]
        if timed:
            # The first answer of all takes longer than those to come.
            for tier in tiers:
                await _told(session, tier, items[0].path, {"max_tokens": 1, **items[0].body})
        for one in timed:
            await ask(one, alone=True)
        left = iter(todo[len(timed) :])

        async def work() -> None:
            for one in left:
                await ask(one, alone=False)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
        except BaseExceptionGroup as errors:  # the first has ended the others
            raise errors.exceptions[0] from None


async def embed(tier: Tier, model: str, texts: Sequence[str]) -> list[list[float]]:
    """The vector of each text, by `model` of the tier's server. Raises TuneError where it gives none."""
    found: list[list[float]] = []
    async with aiohttp.ClientSession() as session:
        for start in range(0, len(texts), _BATCH):
            body = {"model": model, "input": [text or " " for text in texts[start : start + _BATCH]]}
            reply, _ = await _reply(
                session, msgspec.structs.replace(tier, model=model), "/v1/embeddings", body
            )
            if isinstance(reply, str):
                raise TuneError(f"{model} at {tier.url} refuses to embed a question: {reply}")
            found += [one["embedding"] for one in reply["data"]]
    return found


def _order(place: int, item: Item, drafts: bool) -> tuple[int, ...]:
    if place >= TIMED or not drafts or not item.asked.messages:
        return SMALL, LARGE
    return (SMALL, LARGE, DRAFTED) if place % 2 else (SMALL, DRAFTED, LARGE)


async def _told(
    session: aiohttp.ClientSession, tier: Tier, path: str, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of an `Answer`; its seconds are those of the attempt that was answered, without any waiting before."""
    reply, seconds = await _reply(session, tier, path, body)
    if isinstance(reply, str):
        return {"text": None, "refusal": reply, "seconds": seconds}
    who = f"{tier.model} at {tier.url}"
    try:
        return {**read_reply(reply, who), "seconds": seconds}
    except (KeyError, IndexError, TypeError) as error:
        raise TuneError(f"{who} does not answer as OpenAI's API does: {error!r}.") from error


async def _reply(
    session: aiohttp.ClientSession, tier: Tier, path: str, body: Mapping[str, Any]
) -> tuple[dict[str, Any] | str, float]:
    """The reply, or why this question is refused; and the seconds that this took."""
    who = f"{tier.model} at {tier.url}"
    for attempt in range(_TRIES):
        start = time.perf_counter()
        try:
            async with session.post(
                tier.url + path, json={"model": tier.model, **body}, headers=tier.headers
            ) as response:
                content = await response.read()
            seconds = time.perf_counter() - start
        except aiohttp.ClientError as error:
            raise TuneError(f"{tier.url} cannot be reached: {error}. Run this again to go on.") from error
        if response.status == 200:
            try:
                return msgspec.json.decode(content, type=dict[str, Any]), seconds
            except msgspec.MsgspecError as error:
                raise TuneError(f"{who} does not answer as OpenAI's API does: {error}.") from error
        if response.status in _REFUSED:
            return _message(content), seconds
        if response.status not in _AGAIN:
            raise TuneError(f"{who} answers {response.status}: {_message(content)}")
        await asyncio.sleep(_wait(response.headers.get("Retry-After"), attempt))
    raise TuneError(
        f"{who} keeps failing, last with {response.status}: {_message(content)} Run this again to go on."
    )


def _message(content: bytes) -> str:
    try:
        return str(msgspec.json.decode(content)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace")


def _wait(told: str | None, attempt: int) -> float:
    try:
        seconds = float(told or "")
    except ValueError:
        seconds = 0.5 * 2**attempt
    return min(max(seconds, 0.0), _LONGEST_WAIT)
