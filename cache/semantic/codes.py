"""From an embedding to what is stored of it: a binary code, and INT8 with a scale. Pure functions of arrays.

A code bit says on which side of a plane the embedding lies; two embeddings at the angle t differ in a bit with the
probability t / pi when the planes are random (Charikar 2002). Planes that fit the data differ less for near pairs: ITQ
(Gong and Lazebnik 2011) rotates the 256 directions of largest variance until the signs lose least. On sentence embeddings,
whose mean is not zero, half as many unrelated entries then pass the first word; the order by all 256 bits is as good.
"""

import functools

import msgspec
import numpy as np
from numpy.typing import NDArray

from .blas import one_thread

Floats = NDArray[np.float32]
Bytes = NDArray[np.int8]
Words = NDArray[np.uint64]

BITS = 256
WORDS = BITS // 64
ITQ_ROUNDS = 30
_SEED = 20_251


class Rotation(msgspec.Struct, frozen=True):
    """Planes of a code: bit i of x is whether x @ planes[:, i] is above thresholds[i]."""

    planes: Floats  # [dims, BITS]
    thresholds: Floats  # [BITS]

    def encode(self, embeddings: Floats) -> Words:
        """[N, dims] -> codes [N, WORDS]."""
        with one_thread():
            bits = embeddings @ self.planes > self.thresholds
        return np.packbits(bits, axis=1, bitorder="little").view("<u8")

    def pack(self) -> bytes:
        return self.planes.tobytes() + self.thresholds.tobytes()

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> "Rotation":
        values = np.frombuffer(data, np.float32).copy()
        return cls(values[:-BITS].reshape(-1, BITS), values[-BITS:])


@functools.cache
def random_rotation(dims: int) -> Rotation:
    """Orthonormal planes, the same ones in every process."""
    gauss = np.random.default_rng(_SEED).standard_normal((dims, BITS))
    with one_thread():
        planes = np.linalg.qr(gauss)[0]
    return Rotation(planes.astype(np.float32), np.zeros(BITS, np.float32))


def trained_rotation(embeddings: Floats) -> Rotation:
    """ITQ on embeddings [N, dims]. About a second at N = 4,096."""
    with one_thread():
        return _itq(embeddings)


def _itq(embeddings: Floats) -> Rotation:
    mean = embeddings.mean(axis=0)
    centred = embeddings - mean
    directions = np.linalg.eigh(centred.T @ centred)[1][:, -BITS:]
    reduced = centred @ directions  # [N, BITS]
    gauss = np.random.default_rng(_SEED).standard_normal((BITS, BITS)).astype(np.float32)
    turn = np.linalg.qr(gauss)[0]
    for _ in range(ITQ_ROUNDS):
        signs = np.where(reduced @ turn > 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd(signs.T @ reduced)
        turn = (left @ right).T
    planes = (directions @ turn).astype(np.float32)
    return Rotation(planes, (mean @ planes).astype(np.float32))


def quantize(embeddings: Floats) -> tuple[Bytes, Floats]:
    """[N, dims], none zero -> INT8 [N, dims], and the scales [N] that make its rows unit vectors."""
    largest = np.abs(embeddings).max(axis=1, keepdims=True)
    quantized = np.rint(embeddings * (127 / largest)).astype(np.int8)
    wide = quantized.astype(np.float32)
    return quantized, 1 / np.sqrt(np.einsum("nd,nd->n", wide, wide))


def restored(quantized: Bytes, scales: Floats) -> Floats:
    """The unit vectors that `quantize` kept."""
    return quantized.astype(np.float32) * scales[:, None]
