"""Near hits through the server: that drafts change no letter of an answer, and what they change of its time.

    python bench/near_hits.py                 # 2,000 pairs, the built-in model
    python bench/near_hits.py --pairs 200 --url http://127.0.0.1:8000

Asks the first question of every pair, which fills the cache, and then every second one twice, in turns: undisturbed
(`no-cache, no-store`) and searched for by its meaning (`no-store`). Without `--url` it starts a server of its own, with an
empty cache. Prints a table per kind of pair, and with `--out` writes all figures as JSON.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path

import aiohttp
from near_pairs import Pair, near_pairs

from penstock.tune.own_server import own_server

UNDISTURBED, SEARCHED = "no-cache, no-store", "no-store"


async def ask(
    session: aiohttp.ClientSession, url: str, question: str, control: str = ""
) -> dict[str, object]:
    body = {
        "model": "builtin",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 256,
    }
    headers = {"x-penstock-cache-control": control} if control else {}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as reply:
        content = await reply.json()
        assert reply.status == 200, content
        return {
            "outcome": reply.headers["x-penstock-cache"],
            "similarity": float(reply.headers.get("x-penstock-similarity", 0)),
            "ms": float(reply.headers["Server-Timing"].removeprefix("total;dur=")),
            "text": content["choices"][0]["message"]["content"],
            "tokens": content["usage"]["completion_tokens"],
        }


async def measure(url: str, pairs: list[Pair]) -> list[dict[str, object]]:
    rows = []
    async with aiohttp.ClientSession() as session:
        kept: dict[str, str] = {}
        for question in dict.fromkeys(pair.first for pair in pairs):
            kept[question] = str((await ask(session, url, question))["text"])
        await asyncio.sleep(1)  # until the last ones are committed
        for place, pair in enumerate(pairs):
            await ask(session, url, pair.second, UNDISTURBED)  # its prompt is in the prefix cache for both
            order = (UNDISTURBED, SEARCHED) if place % 2 else (SEARCHED, UNDISTURBED)
            found = {control: await ask(session, url, pair.second, control) for control in order}
            plain, searched = found[UNDISTURBED], found[SEARCHED]
            rows.append(
                {
                    "kind": pair.kind,
                    "outcome": searched["outcome"],
                    "similarity": searched["similarity"],
                    "identical": searched["text"] == plain["text"],
                    "agrees": plain["text"] == kept[pair.first],
                    "tokens": plain["tokens"],
                    "ms": searched["ms"],
                    "undisturbed ms": plain["ms"],
                }
            )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """One line per kind, then those whose answers agree, those whose do not, and what found nothing."""
    groups = {
        kind: [row for row in rows if row["kind"] == kind] for kind in sorted({str(r["kind"]) for r in rows})
    }
    drafted = [row for row in rows if row["outcome"] == "draft"]
    groups |= {
        "drafted, same answer": [row for row in drafted if row["agrees"]],
        "drafted, other answer": [row for row in drafted if not row["agrees"]],
        "nothing found": [row for row in rows if row["outcome"] == "miss"],
        "all": rows,
    }
    lines = [
        "| pairs | number | drafted | same text | median ms | undisturbed | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, group in groups.items():
        if group:
            with_, without = (
                statistics.median(float(str(row[key])) for row in group) for key in ("ms", "undisturbed ms")
            )
            drafts = sum(row["outcome"] == "draft" for row in group) / len(group)
            same = sum(bool(row["identical"]) for row in group) / len(group)
            times = f"{with_:.1f} | {without:.1f} | {without / with_:.2f}"
            lines.append(f"| {name} | {len(group)} | {drafts:.0%} | {same:.1%} | {times} |")
    return "\n".join(lines)


async def wait_for_embedder(url: str, *, by_model: bool) -> None:
    """Near hits begin once the embedding model is loaded, or the served one has embedded some questions."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/metrics") as reply:
            assert reply.status == 200
        if by_model:
            body = {"model": "all-MiniLM-L6-v2", "input": "x"}
            async with session.post(f"{url}/v1/embeddings", json=body) as reply:
                assert reply.status == 200, await reply.text()
    await asyncio.sleep(0.2 if by_model else 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--url", help="a running server with the built-in model and an empty cache")
    parser.add_argument("--model", default="builtin", help="of its own server")
    parser.add_argument(
        "--embedding-model", default="auto", help="of its own server: 'engine', a folder or a hub id"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pairs = near_pairs(args.pairs)

    async def run(url: str) -> list[dict[str, object]]:
        await wait_for_embedder(url, by_model=args.embedding_model != "engine")
        return await measure(url, pairs)

    if args.url:
        rows = asyncio.run(run(args.url))
    else:
        flags = ["--model", args.model, "--served-model-name", "builtin"]
        flags += ["--embedding-model", args.embedding_model]
        with (
            tempfile.TemporaryDirectory() as folder,
            own_server([*flags, "--cache-path", f"{folder}/cache"]) as url,
        ):
            rows = asyncio.run(run(url))
    print(table(rows))
    if args.out:
        args.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
