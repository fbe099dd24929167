"""One entry as one line of JSON, there and back: readable, and all that is needed to restore it. Pure functions.

{"place": hex, "digest": hex, "created": s, "expires": s or null, "accessed": µs, "completion": {...},
 "question": {"partition": hex, "family": hex, "text", "before", "after"} or null,
 "embedding": {"scale", "int8": base64} or null, "prompt": {"model", "messages", "text", "tools", "begun"}, if it was kept}
"""

import math
from typing import Any

import msgspec
import numpy as np
import xxhash

from .key import DIGEST_BYTES, PLACE_BYTES, SCOPE_BYTES, TENANT_BYTES
from .opened import Entry
from .record import Record, encode_body
from .semantic import Stored
from .trust.label_log import FAMILY_BYTES
from .values import CachedChoice, CachedCompletion, Question, WholePrompt

FORMAT = "penstock completions"
VERSION = 1
_LAST_STAMP = 2**63

# JSON has no -inf, which is the log-probability of what cannot be said: null stands for it.
_Logprob = float | None


class Header(msgspec.Struct, frozen=True):
    """The first line of a file."""

    format: str
    version: int


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Choice(_Line):
    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None
    logprobs: list[tuple[int, _Logprob, list[tuple[int, _Logprob]]]] | None
    wire: bytes | None = None


class _Completion(_Line):
    choices: list[_Choice]
    prompt_tokens: int
    engine_seconds: float


class _Question(_Line):
    partition: str
    family: str
    text: str
    before: str
    after: str


class _Embedding(_Line):
    scale: float
    int8: bytes


class _Prompt(_Line):
    model: str
    messages: list[dict[str, Any]] | None
    text: str
    tools: list[dict[str, Any]] | None
    begun: str


class _EntryLine(_Line):
    place: str
    digest: str
    created: float
    expires: float | None
    accessed: int
    completion: _Completion
    question: _Question | None
    embedding: _Embedding | None
    prompt: _Prompt | None = None


_decoder = msgspec.json.Decoder(_EntryLine)


def line_of(entry: Entry) -> bytes | None:
    """Without the line's end. None when the entry is damaged."""
    completion, question, record = entry.completion, entry.question, entry.record
    if completion is None:
        return None
    line = {
        "place": entry.place.hex(),
        "digest": record.digest.hex(),
        "created": record.created,
        "expires": None if record.expires == math.inf else record.expires,
        "accessed": record.accessed,
        "completion": {
            "choices": [msgspec.structs.asdict(choice) for choice in completion.choices],
            "prompt_tokens": completion.prompt_tokens,
            "engine_seconds": completion.engine_seconds,
        },
        "question": None,
        "embedding": None,
    }
    if question is not None:
        hexed = {"partition": question.partition.hex(), "family": question.family.hex()}
        line["question"] = msgspec.structs.asdict(question) | hexed
    if entry.embedding is not None:
        line["embedding"] = {"scale": entry.embedding.scale, "int8": entry.embedding.vector.tobytes()}
    if (prompt := entry.prompt) is not None:
        line["prompt"] = msgspec.structs.asdict(prompt)
    return msgspec.json.encode(line)


def entry_of(line: bytes) -> Entry:
    """Raises ValueError that says what is wrong with the line."""
    try:
        found = _decoder.decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    place = _from_hex("place", found.place, PLACE_BYTES)
    question = _question(found.question, place)
    expires = math.inf if found.expires is None else found.expires
    if not 0 <= found.created < expires or not 0 <= found.accessed < _LAST_STAMP:
        raise ValueError(
            f"created {found.created}, expires {found.expires}, accessed {found.accessed} are no times in their order"
        )
    prompt = None if found.prompt is None else WholePrompt(**msgspec.structs.asdict(found.prompt))
    body = encode_body(_completion(found.completion), question, prompt)
    # Queued for eviction by its last use.
    record = Record(
        found.created,
        expires,
        found.accessed,
        found.accessed,
        xxhash.xxh3_64_intdigest(body),
        _from_hex("digest", found.digest, DIGEST_BYTES),
    )
    return Entry(place, record, body, None if question is None else _stored(found.embedding))


def _completion(found: _Completion) -> CachedCompletion:
    choices = []
    for choice in found.choices:
        logprobs = None
        if choice.logprobs is not None:
            logprobs = [
                (token, _restored(value), [(other, _restored(its)) for other, its in likeliest])
                for token, value, likeliest in choice.logprobs
            ]
        choices.append(
            CachedChoice(
                choice.text, choice.token_ids, choice.finish_reason, choice.stop_reason, logprobs, choice.wire
            )
        )
    return CachedCompletion(choices, found.prompt_tokens, found.engine_seconds)


def _restored(logprob: _Logprob) -> float:
    return -math.inf if logprob is None else logprob


def _question(found: _Question | None, place: bytes) -> Question | None:
    if found is None:
        return None
    partition = _from_hex("partition", found.partition, PLACE_BYTES)
    family = _from_hex("family", found.family, FAMILY_BYTES)
    if partition[:SCOPE_BYTES] != place[:SCOPE_BYTES] or family[:TENANT_BYTES] != place[:TENANT_BYTES]:
        # It would be found by the meaning of another tenant's questions, or learnt from.
        raise ValueError("its partition or family belongs to another tenant or namespace than its place")
    return Question(partition, family, found.text, found.before, found.after)


def _stored(found: _Embedding | None) -> Stored | None:
    if found is None:
        return None
    vector = np.frombuffer(found.int8, np.int8)
    if not vector.any() or not 0 < found.scale < math.inf:
        raise ValueError("its embedding has no direction")
    return Stored(vector, found.scale)


def _from_hex(name: str, text: str, size: int) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        raise ValueError(f"{name} is {text!r}; it must be {2 * size} hexadecimal digits")
    return value
