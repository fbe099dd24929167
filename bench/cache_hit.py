"""Round-trip time of an exact cache hit over HTTP, from a raw keep-alive socket: as near to the server as it gets.

    python bench/cache_hit.py --url http://127.0.0.1:8000

Sends one deterministic chat request until it is a hit, then repeats it; prints percentiles and checks that every body has
the content of the first.
"""

import argparse
import json
import socket
import time
from urllib.parse import urlsplit

BODY = {
    "model": "builtin",
    "messages": [{"role": "user", "content": "how do I list files?"}],
    "temperature": 0,
}


def ask(connection: socket.socket, request: bytes) -> tuple[dict[str, str], bytes, float]:
    """Headers, body and seconds of one request on a keep-alive connection."""
    start = time.perf_counter()
    connection.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")[1:]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return headers, body, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=1000)
    args = parser.parse_args()
    where = urlsplit(args.url)
    assert where.hostname in ("127.0.0.1", "localhost"), "only this machine is measured"
    payload = json.dumps(BODY).encode()
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    ).encode() + payload
    with socket.create_connection((where.hostname, where.port or 80), timeout=30) as connection:
        _, first, _ = ask(connection, request)
        content = json.loads(first)["choices"][0]["message"]["content"]
        seconds = []
        for _ in range(args.requests):
            headers, body, taken = ask(connection, request)
            assert headers["x-penstock-cache"] == "hit", headers
            assert json.loads(body)["choices"][0]["message"]["content"] == content
            seconds.append(taken)
    seconds.sort()
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        print(f"{name} {seconds[int(len(seconds) * share)] * 1e6:.0f} us")


if __name__ == "__main__":
    main()
