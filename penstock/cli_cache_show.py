"""How `penstock cache` prints what it found: for people, or as JSON."""

import json
import time
from collections.abc import Mapping
from typing import Any

from .cache.key import SCOPE_BYTES, TENANT_BYTES, namespace_hash
from .cache.opened import Entry
from .cache.overview import Overview, Spread
from .cache.values import WholePrompt

_SHORT = 8  # hexadecimal digits of a hash
_SHOWN_SCOPES = 20


def show_overview(found: Overview, tenants: Mapping[bytes, str], *, as_json: bool) -> None:
    if as_json:
        print_json(_overview_json(found, tenants))
        return
    print(
        f"entries     {found.entries}, {found.with_question} of them with their question, "
        f"{found.with_prompt} with the whole prompt"
    )
    share = 100 * found.used_bytes / found.max_bytes
    print(
        f"size        {size(found.used_bytes)} live, {share:.0f} % of the cap of {size(found.max_bytes)}; "
        f"file {size(found.file_bytes)}"
    )
    if found.index is None:
        print("index       none: nothing was found by meaning here yet")
    else:
        index = found.index
        print(
            f"index       {index.entries} entries of {index.dims} numbers in {index.partitions} partitions, "
            f"{index.trained_partitions} trained; {index.dead} dead slots"
        )
    print(f"expiry      {found.expiring} with a time to live, {found.over} over already")
    if found.damaged:
        print(f"damaged     {found.damaged}, never served")
    if found.ages is not None and found.sizes is not None:
        ages, sizes = found.ages, found.sizes
        print(
            f"age         newest {duration(ages.least)}, p50 {duration(ages.p50)}, oldest {duration(ages.most)}"
        )
        print(
            f"entry size  p50 {size(sizes.p50)}, p90 {size(sizes.p90)}, p99 {size(sizes.p99)}, most {size(sizes.most)}"
        )
    print(f"kept in it  {duration(found.engine_seconds)} of computing")
    for scope in found.scopes[:_SHOWN_SCOPES]:
        print(f"  {scope_name(scope.scope, tenants)}: {entries(scope.entries)}, {size(scope.num_bytes)}")
    if len(found.scopes) > _SHOWN_SCOPES:
        print(f"  and {len(found.scopes) - _SHOWN_SCOPES} more; --json has them all")


def show_entries(found: list[Entry], now: float, *, as_json: bool) -> None:
    if as_json:
        print_json([_entry_json(entry, now) for entry in found])
        return
    for entry in found:
        question = entry.question
        print(f"{entry.place.hex()}  {duration(now - entry.record.created)} old")
        print(f"  asked     {short(question.text) if question is not None else '(not kept)'}")
        print(f"  answered  {short(_first_answer(entry))}")
    if not found:
        print("Nothing found. Entries that were kept without their question are not searched.")


def show_entry(entry: Entry, now: float, *, as_json: bool) -> None:
    if as_json:
        print_json(_entry_json(entry, now))
        return
    record, question, completion = entry.record, entry.question, entry.completion
    over = "never" if record.expires == float("inf") else _moment(record.expires)
    print(f"place    {entry.place.hex()}")
    print(f"stored   {_moment(record.created)}, {duration(now - record.created)} ago")
    print(f"used     {_moment(record.accessed / 1e6)}")
    print(f"expires  {over}{' (over)' if record.expires <= now else ''}")
    print(f"size     {size(len(entry.body))}")
    if completion is None:
        print("damaged  its bytes do not match their checksum: it is never served")
        return
    print(f"cost     {duration(completion.engine_seconds)}, {completion.prompt_tokens} prompt tokens")
    prompt = entry.prompt
    if question is not None:
        print(f"prompt, around the question\n{harmless(question.excerpt)}")
    if prompt is not None:
        print(f"prompt, whole\n{harmless(json.dumps(_prompt_json(prompt), ensure_ascii=False, indent=1))}")
    if question is None and prompt is None:
        print("prompt   (not kept)")
    for number, choice in enumerate(completion.choices, 1):
        print(
            f"answer {number}  {len(choice.token_ids)} tokens, finish_reason {choice.finish_reason}\n{harmless(choice.text)}"
        )
        print(f"tokens {number}  {' '.join(map(str, choice.token_ids))}")


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def scope_name(scope: bytes, tenants: Mapping[bytes, str]) -> str:
    """The tenant's and the namespace's hash, short, and what is known of their names."""
    tenant, namespace = scope[:TENANT_BYTES], scope[TENANT_BYTES:SCOPE_BYTES]
    known = f" ({tenants[tenant]})" if tenant in tenants else ""
    own = "" if namespace == namespace_hash("") else f", namespace {namespace.hex()[:_SHORT]}"
    return f"tenant {tenant.hex()[:_SHORT]}{known}{own}"


def harmless(text: str) -> str:
    """What clients and models wrote may hold characters that steer a terminal: they are shown, not obeyed."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def short(text: str, length: int = 100) -> str:
    """One line."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= length else line[: length - 1] + "…"


def entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "after the end of the calendar"


def _first_answer(entry: Entry) -> str:
    completion = entry.completion
    return "(damaged)" if completion is None else completion.choices[0].text


def _entry_json(entry: Entry, now: float) -> dict[str, Any]:
    record, question = entry.record, entry.question
    completion = entry.completion
    return {
        "place": entry.place.hex(),
        "age": now - record.created,
        "created": record.created,
        "expires": None if record.expires == float("inf") else record.expires,
        "accessed": record.accessed / 1e6,
        "bytes": len(entry.body),
        "question": None if question is None else question.text,
        "prompt_excerpt": None if question is None else question.excerpt,
        "prompt": None if (prompt := entry.prompt) is None else _prompt_json(prompt),
        "choices": None
        if completion is None
        else [
            {"text": choice.text, "token_ids": choice.token_ids, "finish_reason": choice.finish_reason}
            for choice in completion.choices
        ],
        "prompt_tokens": None if completion is None else completion.prompt_tokens,
        "engine_seconds": None if completion is None else completion.engine_seconds,
    }


def _prompt_json(prompt: WholePrompt) -> dict[str, Any]:
    """What of it is there."""
    import msgspec

    return {name: value for name, value in msgspec.structs.asdict(prompt).items() if value}


def _overview_json(found: Overview, tenants: Mapping[bytes, str]) -> dict[str, Any]:
    import msgspec

    def spread(values: Spread | None) -> dict[str, float] | None:
        return None if values is None else msgspec.structs.asdict(values)

    return msgspec.structs.asdict(found) | {
        "ages": spread(found.ages),
        "sizes": spread(found.sizes),
        "index": None if found.index is None else msgspec.structs.asdict(found.index),
        "scopes": [
            {
                "tenant": scope.scope[:TENANT_BYTES].hex(),
                "name": tenants.get(scope.scope[:TENANT_BYTES]),
                "namespace": scope.scope[TENANT_BYTES:].hex(),
                "entries": scope.entries,
                "num_bytes": scope.num_bytes,
            }
            for scope in found.scopes
        ],
    }
