"""How the index lies in LMDB: names of rows, and the arrays inside them. Pure functions.

In the database `semantic`; numbers are big-endian, so a partition's rows of one kind stand together and in order:

    format                      FORMAT and dims
    next                        the number that the next partition gets; a number is never used twice
    p | blake2b-256 of a name   head of that partition
    r | number                  its trained rotation
    c | number | segment        codes of 1,024 entries: the first words together, then the other three of each
    v | number | segment        their embeddings: the scales together, then the INT8 rows
    d | number | segment        which of the segment's entries were removed, a bit each; missing when none
    t | number | slot           an entry of the last, unfilled segment

Appending to a segment would rewrite 420 KB a commit; so entries wait in rows of their own until a segment is full.
`semantic_keys` holds number | key -> slot, and `semantic_slots` number | slot -> key.
"""

import struct
from hashlib import blake2b

import msgspec
import numpy as np
from numpy.typing import NDArray

from .codes import WORDS, Bytes, Floats, Words

FORMAT = 1
SEGMENT = 1024
FORMAT_ROW, NEXT_ROW = b"format", b"next"
HEAD, ROTATION, CODES, VECTORS, REMOVED, TAIL = b"p", b"r", b"c", b"v", b"d", b"t"

_HEAD = struct.Struct("<QQIIII")
_SCALE = struct.Struct("<f")
_NUMBER = struct.Struct(">Q")
_PLACE = struct.Struct(">QI")


class Head(msgspec.Struct, frozen=True):
    """What a partition is now.

    Attributes:
        number: what its rows are named by; another after compaction, so a slot of a number means one entry for ever.
        changes: counts the transactions that changed it.
        count: slots given out, removed ones included.
        sealed: segments that are full and stored as planes.
        dead: slots that were removed.
        generation: 0 while codes come from the random rotation, 1 once they come from the trained one.
    """

    number: int
    changes: int = 0
    count: int = 0
    sealed: int = 0
    dead: int = 0
    generation: int = 0

    def pack(self) -> bytes:
        return _HEAD.pack(self.number, self.changes, self.count, self.sealed, self.dead, self.generation)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> "Head":
        return cls(*_HEAD.unpack(data))


def head_row(partition: bytes) -> bytes:
    return HEAD + blake2b(partition, digest_size=32).digest()


def number_row(kind: bytes, number: int) -> bytes:
    return kind + _NUMBER.pack(number)


def row(kind: bytes, number: int, index: int) -> bytes:
    """`index`: a segment or a slot."""
    return kind + _PLACE.pack(number, index)


def key_row(number: int, key: bytes) -> bytes:
    return _NUMBER.pack(number) + key


def slot_row(number: int, slot: int) -> bytes:
    return _PLACE.pack(number, slot)


def index_of(name: bytes | memoryview) -> int:
    """The segment or slot at the end of a row's name."""
    return int.from_bytes(name[-4:], "big")


def tail_type(dims: int) -> np.dtype[np.void]:
    """One entry: its code, scale and INT8 embedding."""
    return np.dtype([("code", "<u8", (WORDS,)), ("scale", "<f4"), ("vector", "i1", (dims,))])


def pack_codes(codes: Words) -> bytes:
    """[SEGMENT, WORDS]"""
    return codes[:, 0].tobytes() + codes[:, 1:].tobytes()


def unpack_codes(data: bytes | memoryview) -> tuple[Words, Words]:
    """First words [SEGMENT], the others [SEGMENT, 3]; views of `data`."""
    words = np.frombuffer(data, "<u8")
    return words[:SEGMENT], words[SEGMENT:].reshape(SEGMENT, WORDS - 1)


def pack_vectors(vectors: Bytes, scales: Floats) -> bytes:
    return scales.tobytes() + vectors.tobytes()


def unpack_vectors(data: bytes | memoryview) -> tuple[Bytes, Floats]:
    """INT8 [SEGMENT, dims] and scales [SEGMENT]; views of `data`."""
    return np.frombuffer(data, np.int8, offset=4 * SEGMENT).reshape(SEGMENT, -1), np.frombuffer(
        data, "<f4", SEGMENT
    )


def vector_in(data: bytes | memoryview, place: int, dims: int) -> tuple[float, bytes | memoryview]:
    """Scale and INT8 embedding of one entry of a segment."""
    begin = _SCALE.size * SEGMENT + place * dims
    return _SCALE.unpack_from(data, _SCALE.size * place)[0], data[begin : begin + dims]


def vector_of_tail(data: bytes | memoryview) -> tuple[float, bytes | memoryview]:
    """Scale and INT8 embedding of an entry in a row of its own."""
    return _SCALE.unpack_from(data, 8 * WORDS)[0], data[8 * WORDS + _SCALE.size :]


def pack_removed(removed: NDArray[np.uint8]) -> bytes:
    """[SEGMENT], 1 where removed."""
    return np.packbits(removed, bitorder="little").tobytes()


def unpack_removed(data: bytes | memoryview) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
