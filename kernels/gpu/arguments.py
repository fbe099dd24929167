"""What every launcher checks of its arguments. Messages name the argument, what it is, and what it must be."""

from torch import Tensor

FLOATS = ("float32", "float16", "bfloat16")


def require(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[str, ...],
    like: Tensor | None = None,
) -> None:
    """Raises ValueError unless `tensor` has `shape` (None: any), one of `dtypes`, contiguous rows, and `like`'s device."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        raise ValueError(f"{name} is {dtype}; it must be {' or '.join(dtypes)}.")
    fits = tensor.dim() == len(shape) and all(
        want is None or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be [{wanted}].")
    if tensor.numel() and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension; it must be 1.")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {like.device} like the rest.")


def require_positive(name: str, value: float) -> None:
    """Raises ValueError for zero, less, and NaN: masked scores are -inf, which must stay so when they are multiplied."""
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be positive (negate the queries for a negative one).")
