"""The compiled library and the structures that it reads: `penstock.h`, `layers.c` and `encoder.c`, field by field."""

import ctypes
import functools
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ....native_build import KERNEL_CHIPS, chip_has, compiled
from ...quantized_rows import quantize_rows
from ..int8_product import product_in_floats

log = logging.getLogger(__name__)

MOST_HEAD_DIM = 256


class Matrix(ctypes.Structure):
    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_long),
        ("k", ctypes.c_long),
        ("sum", ctypes.c_void_p),
    )

    def with_bias(self, bias: Tensor | None) -> "Matrix":
        address = None if bias is None else bias.data_ptr()
        return Matrix(self.packed, self.scale, address, self.n, self.k, self.sum)


class Pool(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )

    @classmethod
    def of(cls, rows: Tensor, scales: Tensor | None) -> "Pool":
        return cls(rows.data_ptr(), None if scales is None else scales.data_ptr())


class Attention(ctypes.Structure):
    _fields_ = (
        ("query", ctypes.c_void_p),
        ("query_row", ctypes.c_long),
        ("query_head", ctypes.c_long),
        ("out", ctypes.c_void_p),
        ("out_row", ctypes.c_long),
        ("keys", Pool),
        ("values", Pool),
        ("slots", ctypes.c_long),
        ("sinks", ctypes.c_void_p),
        ("heads", ctypes.c_long),
        ("kv_heads", ctypes.c_long),
        ("key_dim", ctypes.c_long),
        ("value_dim", ctypes.c_long),
        ("block_size", ctypes.c_long),
        ("window", ctypes.c_long),
        ("scaling", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("spans", ctypes.c_void_p),
        ("num_spans", ctypes.c_long),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        ("norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("keys", Pool),
        ("values", Pool),
        ("window", ctypes.c_long),
    )


class Stack(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("hidden", ctypes.c_long),
        ("heads", ctypes.c_long),
        ("kv_heads", ctypes.c_long),
        ("head_dim", ctypes.c_long),
        ("intermediate", ctypes.c_long),
        ("rotary_dim", ctypes.c_long),
        ("slots", ctypes.c_long),
        ("block_size", ctypes.c_long),
        ("eps", ctypes.c_float),
        ("scaling", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("activation", ctypes.c_int),
    )


class Step(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("spans", ctypes.c_void_p),
        ("rows", ctypes.c_long),
        ("num_spans", ctypes.c_long),
        ("qkv", ctypes.c_void_p),
        ("attended", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("threads", ctypes.c_int),
    )


class LayerNorm(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class EncoderLayer(ctypes.Structure):
    _fields_ = (
        ("qkv", Matrix),
        ("out", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("attention_norm", LayerNorm),
        ("norm", LayerNorm),
    )


class Encoder(ctypes.Structure):
    _fields_ = (
        ("words", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("norm", LayerNorm),
        ("layers", ctypes.POINTER(EncoderLayer)),
        ("num_layers", ctypes.c_long),
        ("hidden", ctypes.c_long),
        ("heads", ctypes.c_long),
        ("intermediate", ctypes.c_long),
        ("eps", ctypes.c_float),
        ("pooling", ctypes.c_int),
    )


class Texts(ctypes.Structure):
    _fields_ = (
        ("token_ids", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("count", ctypes.c_long),
        ("rows", ctypes.c_long),
        ("longest", ctypes.c_long),
        ("out", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, its functions declared, for the best chip that this one is; None where it cannot be had."""
    chips = filter(chip_has, KERNEL_CHIPS.values())
    return next((found for chip in chips if (found := library_for(chip)) is not None), None)


def library_for(chip: Sequence[str]) -> ctypes.CDLL | None:
    """The library as compiled for these features of a chip; None where that fails, or multiplies wrongly."""
    try:
        found = ctypes.CDLL(str(compiled(Path(__file__).parent, "penstock", chip)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("the CPU's C kernels are not compiled for %s: %s", chip, error)
        return None
    pointer, long, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    functions: dict[str, tuple[type, ...]] = {
        "penstock_quantize_weight": (pointer, integer, long, long, pointer, pointer, integer),
        "penstock_pack": (pointer, long, long, pointer, integer),
        "penstock_sum_rows": (pointer, pointer, pointer, integer),
        "penstock_int8_matmul": (pointer, long, pointer, pointer, pointer, pointer, integer),
        "penstock_argmax": (pointer, long, long, pointer, pointer, integer),
        "penstock_store": (pointer, pointer, long, long, pointer, long, long, long, long, integer),
        "penstock_attend": (pointer, integer),
        "penstock_layers": (pointer, pointer, long, long, integer),
        "penstock_encode": (pointer, pointer),
        "penstock_head": (
            pointer,
            pointer,
            long,
            pointer,
            ctypes.c_float,
            pointer,
            pointer,
            pointer,
            integer,
        ),
    }
    sizes: dict[str, tuple[type, ...]] = {
        "penstock_packed_bytes": (long, long),
        "penstock_product_scratch": (long, long),
        "penstock_scratch": (pointer, long),
        "penstock_encoder_scratch": (pointer, pointer),
    }
    for name, arguments in (functions | sizes).items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, long if name in sizes else None
    if not _is_exact(found):
        log.warning("the CPU's C kernels multiply wrongly as compiled here; they do not serve")
        return None
    return found


_threads: int | None = None


def use_threads(count: int | None) -> None:
    """How many threads the library works on from here on; None for as many as torch."""
    global _threads
    _threads = count


def num_threads() -> int:
    return _threads or torch.get_num_threads()


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, N] float32 -> the largest of each row [M], NaN where there is one, and where it first stands [M] int64."""
    found = library()
    if found is None or not x.is_contiguous():
        best, where = x.max(dim=-1)
        return best, where
    best, where = x.new_empty(x.shape[0]), torch.empty(x.shape[0], dtype=torch.int64)
    found.penstock_argmax(x.data_ptr(), *x.shape, best.data_ptr(), where.data_ptr(), num_threads())
    return best, where


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of float32 or bfloat16 [N, K], what `int8_matmul.quantize_weight` gives; None where the library does not serve."""
    found = library()
    if found is None or weight.dtype not in (torch.float32, torch.bfloat16) or not weight.is_contiguous():
        return None
    n, k = weight.shape
    quantized, scale = torch.empty(n, k, dtype=torch.int8), torch.empty(n)
    is_bfloat16 = weight.dtype is torch.bfloat16
    found.penstock_quantize_weight(
        weight.data_ptr(), is_bfloat16, n, k, quantized.data_ptr(), scale.data_ptr(), num_threads()
    )
    return quantized, scale


class PackedWeight:
    """An INT8 weight in the order that the library reads; its product with any rows is exact."""

    __slots__ = ("_library", "_packed", "_scale", "_sum", "in_features", "matrix", "out_features")

    def __init__(self, found: ctypes.CDLL, plain: Tensor, scale: Tensor) -> None:
        """plain [N, K] int8, scale [N] float32."""
        n, k = plain.shape
        plain = plain.contiguous()
        self._library = found
        self._packed = torch.empty(found.penstock_packed_bytes(n, k), dtype=torch.uint8)
        self._scale = scale.contiguous()
        self.out_features, self.in_features = n, k
        self._sum = torch.empty(n)
        self.matrix = Matrix(self._packed.data_ptr(), self._scale.data_ptr(), None, n, k, None)
        found.penstock_pack(plain.data_ptr(), n, k, self._packed.data_ptr(), num_threads())
        scratch = self.scratch(1)
        found.penstock_sum_rows(
            ctypes.byref(self.matrix), self._sum.data_ptr(), scratch.data_ptr(), num_threads()
        )
        self.matrix.sum = self._sum.data_ptr()

    def scratch(self, rows: int) -> Tensor:
        """What the library needs to quantize so many rows into."""
        needed = self._library.penstock_product_scratch(rows, self.in_features)
        return torch.empty(needed, dtype=torch.uint8)

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] float32."""
        x = x.float().contiguous()
        rows = x.shape[0]
        out = torch.empty(rows, self.out_features)
        scratch = self.scratch(rows)
        self._library.penstock_int8_matmul(
            x.data_ptr(),
            rows,
            ctypes.byref(self.matrix),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
            num_threads(),
        )
        return out


def _is_exact(found: ctypes.CDLL) -> bool:
    """Tried once, on rows that need every part of a product."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(-128, 128, (70, 201), generator=generator, dtype=torch.int8)
    x, scale, bias = (torch.randn(size, generator=generator) for size in ((7, 201), (70,), (70,)))
    rows = quantize_rows(x)
    expected = product_in_floats(rows.values, plain).float().mul_(scale)
    expected.sub_(rows.zero * (plain.sum(dim=1).float() * scale)).mul_(rows.scale).add_(bias)
    return torch.equal(PackedWeight(found, plain, scale).matmul(x, bias), expected)
