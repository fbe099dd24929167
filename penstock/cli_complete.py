"""`penstock complete`: one text, or a JSONL file of them with many in flight.

A batch that was cut goes on where it was.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, TextIO

from .cli_jsonl import drop_torn_end, read_jsonl, work_through
from .cli_talk import Talker, talker
from .config import Settings
from .errors import ConfigError, InvalidRequestError, PenstockError

_PARAMETERS = ("temperature", "max_tokens", "seed")


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    import uvloop

    prompt, source = arguments["prompt"], arguments["input"]
    if (prompt is None) == (source is None):
        raise ConfigError("Give either a text to complete or --input FILE.", param="input")
    if arguments["concurrency"] < 1:
        raise ConfigError(
            f"concurrency is {arguments['concurrency']}; it must be at least 1.", param="concurrency"
        )
    params = {name: arguments[name] for name in _PARAMETERS if arguments[name] is not None}
    partner = talker(settings, arguments)
    if source is None:
        text = sys.stdin.read() if prompt == "-" else prompt
        request = {"messages": [{"role": "user", "content": text}]} if arguments["chat"] else {"prompt": text}
        uvloop.run(_one(partner, request, params))
        return 0
    if arguments["output"] is None:
        raise ConfigError("A batch needs --output FILE for its results.", param="output")
    output = Path(arguments["output"])
    lines = _pending(Path(source), output)
    return uvloop.run(_batch(partner, lines, output, params, arguments["concurrency"]))


async def _one(partner: Talker, request: dict[str, Any], params: dict[str, Any]) -> None:
    await partner.start()
    try:
        async with aclosing(partner.answer(request, params)) as pieces:
            async for piece in pieces:
                print(piece.text, end="", flush=True)
        print()
    finally:
        await partner.close()


def _pending(source: Path, output: Path) -> list[dict[str, Any]]:
    """The lines of the batch that have no result yet. A line without an "id" is known by its number.

    Raises ConfigError naming the file and the line at fault.
    """
    lines = read_jsonl(source)
    for number, line in enumerate(lines, 1):
        line.setdefault("id", number)
        if ("prompt" in line) == ("messages" in line):
            raise ConfigError(
                f"{source}, line {number}: it must hold either 'prompt' or 'messages'.", param="input"
            )
    if len({json.dumps(line["id"]) for line in lines}) < len(lines):
        raise ConfigError(
            f"{source}: two lines have the same id; results could not be told apart.", param="input"
        )
    if not output.exists():
        return lines
    drop_torn_end(output)
    done = {json.dumps(result.get("id")) for result in read_jsonl(output) if "error" not in result}
    return [line for line in lines if json.dumps(line["id"]) not in done]


async def _batch(
    partner: Talker, lines: list[dict[str, Any]], output: Path, params: dict[str, Any], concurrency: int
) -> int:
    """1 when any line failed, else 0."""
    await partner.start()
    try:
        with output.open("a", encoding="utf-8") as results:
            failed = await work_through(
                lines, lambda line: _answer_line(partner, line, params, results), concurrency=concurrency
            )
    finally:
        await partner.close()
    if failed:
        print(f"{failed} of {len(lines)} lines failed; their results hold an 'error'.", file=sys.stderr)
    return 1 if failed else 0


async def _answer_line(
    partner: Talker, line: dict[str, Any], params: dict[str, Any], results: TextIO
) -> bool:
    own = {name: value for name, value in line.items() if name not in ("id", "prompt", "messages")}
    request: dict[str, Any] = {name: line[name] for name in ("prompt", "messages") if name in line}
    result: dict[str, Any] = {"id": line["id"]}
    texts: list[str] = []
    try:
        if own.get("n", 1) != 1:
            raise InvalidRequestError(
                f"n is {own['n']!r}; a result holds one completion: write so many lines."
            )
        async with aclosing(partner.answer(request, {**params, **own})) as pieces:
            async for piece in pieces:
                texts.append(piece.text)
                last = piece
        result |= {
            "text": "".join(texts),
            "finish_reason": last.finish_reason,
            "prompt_tokens": last.prompt_tokens,
            "completion_tokens": last.completion_tokens,
        }
    except PenstockError as error:
        result["error"] = error.message
    results.write(json.dumps(result, ensure_ascii=False) + "\n")
    results.flush()
    return "error" not in result
