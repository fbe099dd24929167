"""`penstock chat`: a conversation in the terminal.

/reset forgets it, /exit ends it, Ctrl-C stops an answer.
"""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from .cli_talk import Talker, talker
from .config import Settings
from .errors import PenstockError

HELP = "/reset forgets the conversation, /exit ends it, Ctrl-C stops an answer."


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    import uvloop

    partner = talker(settings, arguments)
    params = {
        name: arguments[name] for name in ("temperature", "max_tokens", "seed") if arguments[name] is not None
    }
    # One loop for the whole conversation, run only while an answer comes: in between, the terminal has the
    # thread.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(partner.start())
        try:
            _converse(runner, partner, params, arguments["system"])
        finally:
            runner.run(partner.close())
    return 0


def _converse(runner: asyncio.Runner, partner: Talker, params: dict[str, Any], system: str | None) -> None:
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP)
    while True:
        try:
            text = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if text == "/exit":
            break
        if text == "/reset":
            messages = list(opening)
            continue
        if text.startswith("/"):
            print(HELP)
            continue
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            # Ctrl-C cancels the answer's task; closing its generator aborts the sequence.
            runner.run(_answer(partner, messages, params, said))
        except KeyboardInterrupt:
            print(" [stopped]")
        except PenstockError as error:
            print(f"[{error.message}]", file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": "".join(said)})


async def _answer(
    partner: Talker, messages: list[dict[str, Any]], params: dict[str, Any], said: list[str]
) -> None:
    finish_reason = None
    async with aclosing(partner.answer({"messages": messages}, params)) as pieces:
        async for piece in pieces:
            said.append(piece.text)
            finish_reason = piece.finish_reason
            print(piece.text, end="", flush=True)
    print(" [cut: max_tokens or context length]" if finish_reason == "length" else "")
