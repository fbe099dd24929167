"""What an embedder and its clients say to each other, in the frames of `protocol.py`. Token ids only."""

import msgspec

from .protocol import LoadFailed


class EmbedderConfig(msgspec.Struct, frozen=True):
    """`model`: a folder or a hub id."""

    model: str


class EmbedderInfo(msgspec.Struct, frozen=True, array_like=True):
    """What is loaded. `path`: its folder. `max_tokens`: longest text. `fingerprint`: see `EmbeddingModel`."""

    path: str
    dims: int
    max_tokens: int
    vocab_size: int
    fingerprint: str


class Embed(msgspec.Struct, tag=True, array_like=True):
    """Texts of 1 to `max_tokens` ids each; `request_id` is new on this connection."""

    request_id: int
    token_ids: list[list[int]]


class Cancel(msgspec.Struct, tag=True, array_like=True):
    request_id: int


class Ready(msgspec.Struct, tag=True, array_like=True):
    """First message to every client."""

    info: EmbedderInfo


class Embedded(msgspec.Struct, tag=True, array_like=True):
    """`vectors`: [n, dims] float32, row by row, in this machine's byte order."""

    request_id: int
    vectors: bytes


ToEmbedder = Embed | Cancel
FromEmbedder = Ready | LoadFailed | Embedded
