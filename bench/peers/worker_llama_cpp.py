"""llama.cpp's own server as a child of this process, asked over HTTP on a kept socket per stream.

Its library has no scheduler of requests, the server has one, so that is what answers. What HTTP costs is small beside a step
of half a billion weights.
"""

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from worker import serve

SERVER = Path(os.environ["LLAMA_SERVER"])
SLOTS, SLOT_TOKENS = 16, 2048


class LlamaCpp:
    precision = "Q8_0"

    def __init__(self, model: str, threads: int) -> None:
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            self._port = chosen.getsockname()[1]
        count = str(threads)
        self._server = subprocess.Popen(
            [
                *(SERVER, "--model", model, "--host", "127.0.0.1", "--port", str(self._port)),
                *("--threads", count, "--threads-batch", count, "--parallel", str(SLOTS), "--cont-batching"),
                # Finished prompts are never asked again here, and would be copied aside.
                *("--ctx-size", str(SLOTS * SLOT_TOKENS), "--cache-ram", "0"),
            ],
            stdin=subprocess.DEVNULL,
        )
        self._wait_until_healthy()
        self.version = os.environ["LLAMA_VERSION"]

    def _wait_until_healthy(self) -> None:
        while True:
            if self._server.poll() is not None:
                raise RuntimeError(f"llama-server ended with {self._server.returncode} while it loaded.")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health"):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.01)

    def run(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[float]]:
        async def all_at_once() -> list[list[float]]:
            return await asyncio.gather(*(self._one(prompt, num_output_tokens) for prompt in prompts))

        return asyncio.run(all_at_once())

    async def _one(self, prompt: list[int], num_output_tokens: int) -> list[float]:
        body = json.dumps(
            {
                "prompt": prompt,
                "n_predict": num_output_tokens,
                "ignore_eos": True,
                "temperature": 0.0,
                "samplers": ["temperature"],
                "stream": True,
                "return_tokens": True,
            }
        ).encode()
        head = "POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        times: list[float] = []
        # Each event of the stream is one line, and one chunk of the body: lines between are lengths of chunks.
        async for line in reader:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                # A token that ends amid a character is sent by no event of its own: the last one counts all.
                new = event["tokens_predicted"] - len(times) if event["stop"] else len(event["tokens"])
                times += [time.perf_counter()] * new
            elif line.startswith(b"HTTP/") and b" 200 " not in line:
                raise RuntimeError(f"llama-server: {line!r} {await reader.read()!r}")
        writer.close()
        return times

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


if __name__ == "__main__":
    serve(LlamaCpp)
