"""Makes bf16 and products right in Triton's interpreter, for tests only.

The interpreter keeps bf16 as the bit patterns of uint16: products and sums of those are nonsense, and converting to bf16
cuts bits off instead of rounding. Here bf16 operands become float32 before anything is computed, and results are
rounded to the nearest even bf16, as on a GPU. Loads, stores, selections and reshapes move bits and stay as they are.
"""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def to_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> bf16 bit patterns, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _is_bf16(value: object) -> bool:
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def _widened(value: TensorHandle) -> TensorHandle:
    return TensorHandle(from_bits(value.data), tl.float32) if _is_bf16(value) else value


def _rounded(value: TensorHandle) -> TensorHandle:
    return TensorHandle(to_bits(value.data), tl.bfloat16)


def make_bf16_right() -> None:
    """Patch the interpreter's builder, once."""
    builder = InterpreterBuilder
    if getattr(builder, "_bf16_is_right", False):
        return
    builder._bf16_is_right = True
    binary, unary, cast, dot = builder.binary_op, builder.unary_op, builder.cast_impl, builder.create_dot

    def binary_op(self, lhs, rhs, op):  # type: ignore[no-untyped-def]
        if not _is_bf16(lhs):
            return binary(self, lhs, rhs, op)
        result = binary(self, _widened(lhs), _widened(rhs), op)
        return _rounded(result) if result.dtype.scalar == tl.float32 else result

    def unary_op(self, arg, op):  # type: ignore[no-untyped-def]
        return _rounded(unary(self, _widened(arg), op)) if _is_bf16(arg) else unary(self, arg, op)

    def cast_impl(self, source, target):  # type: ignore[no-untyped-def]
        if target.scalar == tl.bfloat16 and not _is_bf16(source):
            return _rounded(cast(self, source, tl.float32))
        if _is_bf16(source) and target.scalar != tl.bfloat16:
            return cast(self, _widened(source), target)
        return cast(self, source, target)

    def create_dot(self, a, b, d, *rest):  # type: ignore[no-untyped-def]
        a, b = _widened(a), _widened(b)
        if d.dtype.scalar != tl.float32:
            return dot(self, a, b, d, *rest)
        # NumPy's BLAS sums in an order that depends on the machine and on the row; in float64 no order shows.
        sums = a.data.astype(np.float64) @ b.data.astype(np.float64) + d.data
        return TensorHandle(sums.astype(np.float32), tl.float32)

    def get_bf16(self, value):  # type: ignore[no-untyped-def]
        return TensorHandle(to_bits(np.array([value], np.float32)), tl.bfloat16)

    builder.get_bf16 = get_bf16
    builder.binary_op, builder.unary_op = binary_op, unary_op
    builder.cast_impl, builder.create_dot = cast_impl, create_dot
