"""Clients that leave: before the first token, in mid-stream, and in a plain request; what is left of them afterwards.

    penstock serve & python bench/disconnects.py --pid $!

After every batch of disconnects prints the server's figures (sequences running, KV blocks in use) and the resident memory of
its processes; all must be as before.
"""

import argparse
import asyncio
import json
import random
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

MOMENTS = ("before the first token", "mid-stream", "plain request")


async def leave(host: str, port: int, moment: str, rng: random.Random) -> None:
    body = {
        "model": "builtin",
        "messages": [{"role": "user", "content": f"how do I list {rng.randrange(1 << 30)} files?"}],
        "max_tokens": 1000,
        "ignore_eos": True,
        "stream": moment != "plain request",
    }
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head.encode() + payload)
    await writer.drain()
    if moment == "mid-stream":
        while b'"content":"' not in await reader.readline():
            pass
    elif moment == "plain request":
        await asyncio.sleep(rng.uniform(0, 0.05))
    writer.close()


async def figures(url: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    wanted = (
        "penstock_num_requests_running{",
        "penstock_num_requests_waiting{",
        "penstock_kv_cache_usage_perc{",
    )
    return {name: float(value) for name, value in (line.split() for line in lines if line.startswith(wanted))}


def resident_mb(pid: int) -> dict[str, float]:
    """Of the process and its children, by their order."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    memory = {}
    for name, number in [("proxy", str(pid)), *((f"child {i}", child) for i, child in enumerate(children))]:
        status = Path(f"/proc/{number}/status").read_text()
        memory[name] = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return memory


async def run(url: str, pid: int, batches: int, size: int) -> None:
    where = urlsplit(url)
    assert where.hostname in ("127.0.0.1", "localhost"), "only this machine is tried"
    rng = random.Random(0)
    for batch in range(batches + 1):
        if batch:
            for start in range(0, size, 20):
                await asyncio.gather(
                    *(
                        leave(where.hostname, where.port or 80, MOMENTS[number % 3], rng)
                        for number in range(start, min(start + 20, size))
                    )
                )
        await asyncio.sleep(0.5)
        memory = ", ".join(f"{name} {mb:.1f} MB" for name, mb in resident_mb(pid).items())
        print(f"after {batch * size} disconnects: {await figures(url)}; {memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, required=True, help="the server's process id")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--size", type=int, default=500, help="disconnects per batch")
    args = parser.parse_args()
    asyncio.run(run(args.url, args.pid, args.batches, args.size))


if __name__ == "__main__":
    main()
