"""A BERT encoder in one call of the C library (`kernels/cpu/native/encoder.c`), on one thread.

With torch's operators a short text is mostly calls: 1.1 ms for 20 tokens of MiniLM, of which the products are 0.45.
"""

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.cpu.int8_matmul import Int8Weight
from ..kernels.cpu.native import library as native
from .encoder_weights import EncoderWeights, Layer, Linear, Norm
from .torch_encoder import TorchEncoder

# As `encoder.c` counts them.
POOLINGS = {"mean": 0, "cls": 1}
# Floats that it takes at once: hidden and intermediate sizes are multiples of it.
LANES = 16
TRIED_LENGTHS = (1, 20, 37)
# Two sums in another order round some activations to the neighbouring integer, which moves the vector after one layer by up
# to 0.001 of its length (measured). From layer to layer that grows to what INT8 is off by anyway: over sixty sentences the
# mean cosine between both ways is 0.9988, and between either and float32 0.9977. So layers are tried one by one.
LARGEST_DIFFERENCE = 0.01


class NativeEncoder:
    """From token ids to unit vectors. Not for two threads at once: what lies between products is kept from call to call."""

    revision = "native-encoder-1"

    def __init__(self, weights: EncoderWeights) -> None:
        found = native.library()
        assert found is not None
        self._library = found
        self._weights = weights  # keeps what the structures point to
        self._vocabulary, self._hidden = weights.words.shape
        self._layers = (native.EncoderLayer * len(weights.layers))(*map(_layer, weights.layers))
        self._encoder = native.Encoder(
            words=weights.words.data_ptr(),
            positions=weights.positions.data_ptr(),
            norm=_norm(weights.norm),
            layers=self._layers,
            num_layers=len(weights.layers),
            hidden=self._hidden,
            heads=weights.heads,
            intermediate=self._layers[0].up.n,
            eps=weights.norm.eps,
            pooling=POOLINGS[weights.pooling.kind],
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def __call__(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """One text at least, each of one token at least -> [n, H] float32 of length 1."""
        flat, lengths = array("q"), array("q", map(len, token_ids))
        for ids in token_ids:
            flat.extend(ids)
        assert min(flat) >= 0 and max(flat) < self._vocabulary, "the library would read past the embedding"
        out = torch.empty(len(lengths), self._hidden)
        texts = native.Texts(
            token_ids=flat.buffer_info()[0],
            lengths=lengths.buffer_info()[0],
            count=len(lengths),
            rows=len(flat),
            longest=max(lengths),
            out=out.data_ptr(),
        )
        arguments = ctypes.byref(self._encoder), ctypes.byref(texts)
        needed = self._library.penstock_encoder_scratch(*arguments)
        if needed > self._scratch.numel():
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        texts.scratch = self._scratch.data_ptr()
        self._library.penstock_encode(*arguments)
        return out


def native_encoder(weights: EncoderWeights) -> NativeEncoder | None:
    """None where the library does not serve, or one of the layers gives other vectors than by torch."""
    if native.library() is None or not weights.layers or not all(map(_is_native, _linears(weights))):
        return None
    if weights.words.shape[1] % LANES or weights.layers[0].up.bias.shape[0] % LANES:
        return None
    generator = torch.Generator().manual_seed(0)
    most = weights.positions.shape[0]
    texts = [
        torch.randint(weights.words.shape[0], (min(length, most),), generator=generator).tolist()
        for length in TRIED_LENGTHS
    ]
    for layer in weights.layers:
        alone = replace(weights, layers=[layer])
        difference = (NativeEncoder(alone)(texts) - TorchEncoder(alone)(texts)).norm(dim=-1)
        if not bool((difference <= LARGEST_DIFFERENCE).all()):
            return None
    return NativeEncoder(weights)


def _linears(weights: EncoderWeights) -> list[Linear]:
    return [linear for layer in weights.layers for linear in (layer.qkv, layer.out, layer.up, layer.down)]


def _is_native(linear: Linear) -> bool:
    return isinstance(linear.weight, Int8Weight) and linear.weight.native is not None


def _layer(layer: Layer) -> native.EncoderLayer:
    return native.EncoderLayer(
        qkv=_matrix(layer.qkv),
        out=_matrix(layer.out),
        up=_matrix(layer.up),
        down=_matrix(layer.down),
        attention_norm=_norm(layer.attention_norm),
        norm=_norm(layer.norm),
    )


def _matrix(linear: Linear) -> native.Matrix:
    assert isinstance(linear.weight, Int8Weight) and linear.weight.native is not None
    return linear.weight.native.matrix.with_bias(linear.bias)


def _norm(norm: Norm) -> native.LayerNorm:
    return native.LayerNorm(norm.weight.data_ptr(), norm.bias.data_ptr())
