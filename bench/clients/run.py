"""Other people's clients, streaming from a running Penstock with the built-in model and a key:

    python bench/clients/run.py

npm's `openai` and `ai` with `@ai-sdk/openai-compatible`, Python's `langchain-openai`, and the `llm` command. Each must get,
in several pieces, the text that the same request gives in one, and report its end and its tokens where it reports any.
Installs the packages under .work/peers; a client that cannot be had is skipped, with the reason. Ends with 1 if one failed.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(1, str(HERE.parent / "peers"))

from environments import SCRATCH, Environment, NotAvailable, run  # noqa: E402
from processes import Process  # noqa: E402

KEY, MODEL, MAX_TOKENS = "client-key", "builtin", 48
QUESTION = "how do I extract a tar.gz archive?"
PYTHON = Environment("clients", ("langchain-openai==1.7.4", "llm==0.36"))
NODE = SCRATCH / "npm"
NODE_PACKAGES = ("openai@7.57.0", "ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92")
START_SECONDS = CLIENT_SECONDS = 120.0


def node(script: str) -> list[str]:
    """The command of a script, which lies beside its packages: that is where Node.js looks for them."""
    if shutil.which("npm") is None:
        raise NotAvailable("there is no npm here")
    stamp = NODE / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != " ".join(NODE_PACKAGES):
        NODE.mkdir(parents=True, exist_ok=True)
        run("npm", "install", "--silent", "--prefix", NODE, *NODE_PACKAGES)
        stamp.write_text(" ".join(NODE_PACKAGES))
    return ["node", shutil.copy(HERE / script, NODE)]


def python(script: str) -> list[str]:
    PYTHON.prepare()
    return [str(PYTHON.python), str(HERE / script)]


CLIENTS: dict[str, Callable[[], list[str]]] = {
    "openai (npm)": lambda: node("openai_npm.mjs"),
    "ai + @ai-sdk/openai-compatible (npm)": lambda: node("ai_sdk.mjs"),
    "langchain-openai": lambda: python("langchain_openai_stream.py"),
    "llm": lambda: python("llm_cli.py"),
}


def plain_answer(url: str) -> dict[str, object]:
    """What the same request gives in one piece."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        whole = json.loads(answer.read())
    choice = whole["choices"][0]
    return {
        "text": choice["message"]["content"],
        "finish": choice["finish_reason"],
        "tokens": whole["usage"]["completion_tokens"],
    }


def check(command: list[str], url: str, wanted: dict[str, object]) -> str | None:
    """What is wrong with what a client got; None if nothing is."""
    told = {
        "CLIENT_URL": url,
        "CLIENT_KEY": KEY,
        "CLIENT_MODEL": MODEL,
        "CLIENT_QUESTION": QUESTION,
        "CLIENT_MAX_TOKENS": str(MAX_TOKENS),
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        command, env=os.environ | told, capture_output=True, text=True, timeout=CLIENT_SECONDS
    )
    if done.returncode:
        return f"it ended with {done.returncode}: {' '.join(done.stderr.split())[-400:]}"
    got = json.loads(done.stdout)
    if got["pieces"] < 2:
        return f"the text came in {got['pieces']} pieces"
    wrong = {name: got[name] for name, value in wanted.items() if got[name] not in (None, value)}
    return f"it got {wrong}, and {wanted} was sent" if wrong else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="instead of all")
    args = parser.parse_args()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    failed = False
    command = [sys.executable, "-m", "penstock", "serve", "--port", str(port), "--api-keys", KEY]
    # Without a cache: what it replays comes in one piece.
    server = Process([*command, "--no-cache"], {}, SCRATCH / "logs" / "clients.log")
    try:
        server.wait_until_ready(f"http://127.0.0.1:{port}/health", START_SECONDS)
        url = f"http://127.0.0.1:{port}/v1"
        wanted = plain_answer(url)
        for name in args.only:
            try:
                wrong = check(CLIENTS[name](), url, wanted)
            except NotAvailable as reason:
                print(f"{name}: skipped: {reason}", flush=True)
                continue
            failed |= wrong is not None
            print(f"{name}: {wrong or 'ok'}", flush=True)
    finally:
        server.close()
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
