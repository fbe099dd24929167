"""How one entry looks as bytes: record, body, and lines in the two time indexes. Pure functions."""

import math
import struct

import msgspec
import xxhash

from .key import DIGEST_BYTES
from .values import CachedCompletion, Question, WholePrompt

_RECORD = struct.Struct(f"<ddQQQ{DIGEST_BYTES}s")
_STAMP = struct.Struct(">Q")  # big-endian: LMDB sorts by bytes, so time order is key order
_LAST_STAMP = float(2**63)


class _Asked(CachedCompletion, array_like=True):
    """A completion and, behind it, where a reader of the completion alone does not look, what was asked."""

    question: Question | None = None


class _Whole(_Asked, array_like=True):
    """And behind that the whole prompt, in JSON: the others step over it as over one value, whatever its length."""

    prompt: bytes | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CachedCompletion)
_asked_decoder = msgspec.msgpack.Decoder(_Asked)
_whole_decoder = msgspec.msgpack.Decoder(_Whole)
_prompt_encoder = msgspec.json.Encoder()
_prompt_decoder = msgspec.json.Decoder(WholePrompt)


class Record(msgspec.Struct, frozen=True):
    """All that is known of an entry beside its body; small, because every access rewrites it.

    Attributes:
        created, expires: seconds of the cache's clock; `expires` is infinite without a time to live.
        accessed: last use, as a stamp.
        queued: the stamp under which the entry stands in the order index; at most `accessed`.
        checksum: xxh3-64 of the body.
        digest: blake2b-256 of the request.
    """

    created: float
    expires: float
    accessed: int
    queued: int
    checksum: int
    digest: bytes


def new_record(body: bytes, digest: bytes, now: float, ttl: float | None) -> Record:
    moment = stamp(now)
    expires = math.inf if ttl is None else now + ttl
    return Record(now, expires, moment, moment, xxhash.xxh3_64_intdigest(body), digest)


def pack_record(record: Record) -> bytes:
    return _RECORD.pack(
        record.created, record.expires, record.accessed, record.queued, record.checksum, record.digest
    )


def unpack_record(data: bytes) -> Record | None:
    """None when the bytes are not a record."""
    return Record(*_RECORD.unpack(data)) if len(data) == _RECORD.size else None


def encode_body(
    completion: CachedCompletion, question: Question | None, prompt: WholePrompt | None = None
) -> bytes:
    values = (completion.choices, completion.prompt_tokens, completion.engine_seconds, question)
    if prompt is None:
        return _encoder.encode(_Asked(*values))
    return _encoder.encode(_Whole(*values, _prompt_encoder.encode(prompt)))


def decode_body(body: bytes, checksum: int) -> CachedCompletion | None:
    """None when the bytes are not the ones that were stored, or not a completion."""
    if xxhash.xxh3_64_intdigest(body) != checksum:
        return None
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError:  # also the base of ValidationError
        return None


def decode_question(body: bytes) -> Question | None:
    """What was asked; None when that was not kept, or the bytes are no body."""
    try:
        return _asked_decoder.decode(body).question
    except msgspec.DecodeError:
        return None


def decode_prompt(body: bytes) -> WholePrompt | None:
    """All that was asked; None when that was not kept, or the bytes are no body."""
    try:
        prompt = _whole_decoder.decode(body).prompt
        return None if prompt is None else _prompt_decoder.decode(prompt)
    except msgspec.DecodeError:
        return None


def stamp(now: float) -> int:
    """A time as an index sorts it: whole microseconds. An absurd time to live ends at the last stamp."""
    return int(min(max(0.0, now * 1e6), _LAST_STAMP))


def index_line(moment: int, place: bytes) -> bytes:
    """Key of a time index: the stamp, then the entry's place to tell equal stamps apart."""
    return _STAMP.pack(moment) + place


def body_key(record: Record, place: bytes) -> bytes:
    """Where the body lies."""
    return index_line(stamp(record.created), place)


def split_line(line: bytes) -> tuple[int, bytes]:
    return _STAMP.unpack_from(line)[0], line[_STAMP.size :]
