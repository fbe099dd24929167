"""Decides once, when an engine loads, what computes: Triton on a GPU, Triton's interpreter in tests, or the CPU's own.

Never a slower one silently: a GPU that cannot be used is an error, and `describe` says what serves what.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from .cpu.native.library import library
from .cpu.sample import sample as on_cpu
from .draw import Draw
from .gpu.config import load as load_configurations
from .per_expert import PerExpertWeight
from .routing import Routing

# Ampere: the first generation with asynchronous copies and bf16, which every kernel relies on.
LOWEST_CAPABILITY = (8, 0)
INTERPRETER = "interpreter"
# What holds the weights of a precision: module and class, the same in `kernels/cpu` and `kernels/gpu`.
WEIGHTS = {
    "w8a8": ("int8_matmul", "Int8Weight"),
    "w8a16": ("weight_only_matmul", "Int8WeightOnly"),
    "w4a16": ("weight_only_matmul", "Int4Weight"),
}
# Precisions whose experts one kernel computes together; in others each expert has a weight as above.
GROUPED_WEIGHTS = {"w8a8": ("grouped_int8_matmul", "GroupedInt8Weight")}


@dataclass(frozen=True, slots=True)
class Backend:
    """`kind` names the folder of kernels that serve: "cpu", or "triton" for `kernels/gpu`."""

    kind: Literal["cpu", "triton"]
    device: torch.device

    @property
    def is_interpreted(self) -> bool:
        return self.kind == "triton" and self.device.type == "cpu"


class QuantizedWeight(Protocol):
    """A weight matrix in one precision, ready to multiply on one kind of machine."""

    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> Self:
        """From a float matrix [N, K], on its device."""

    @classmethod
    def from_integers(cls, values: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Self:
        """From [N, K] int8, in 4 bits from -8 to 7, and the float32 scales of whole groups: [N, 1], in 4 bits [N, K / 32],
        [N, K / 64] or [N, K / 128]. All are on their device. What is multiplied with are these very numbers.

        `zeros`: of 4 bits, where zero is not stored as 0 but as these, int8 from -8 to 7 for each group.
        """

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] -> [M, N] in x's dtype."""


class GroupedWeight(Protocol):
    """A weight matrix for each expert, all of one shape and precision, ready to multiply on one kind of machine."""

    def matmul(self, x: Tensor, routing: Routing, bias: Tensor | None = None) -> Tensor:
        """[T, K] float, bias [E, N] float32 -> [S, N] in x's dtype, by expert; within a routing T is S."""


def choose_backend(device: str) -> Backend:
    """`device`: "cpu"; "cuda"; "auto": CUDA where there is one; "interpreter": the Triton kernels run as Python, for tests.

    Raises ValueError naming what is missing, or what is wrong in the file of measured configurations, and the remedy.
    """
    if device == INTERPRETER:
        return _interpreter()
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return Backend("cpu", torch.device("cpu"))
    if not torch.cuda.is_available():
        raise ValueError(
            "device is 'cuda', but torch finds no CUDA device; install a CUDA build of torch and the driver, or use 'cpu'."
        )
    capability = torch.cuda.get_device_capability()
    if capability < LOWEST_CAPABILITY:
        name, version = torch.cuda.get_device_name(), ".".join(map(str, capability))
        raise ValueError(
            f"{name} has compute capability {version}; Penstock's kernels need 8.0 or later. Use device = 'cpu'."
        )
    _require_triton()
    backend = Backend("triton", torch.device("cuda", torch.cuda.current_device()))
    load_configurations(backend.device)
    return backend


def weight_class(backend: Backend, precision: str) -> type[QuantizedWeight]:
    """What holds a weight of `precision`, a key of WEIGHTS."""
    module, name = WEIGHTS[precision]
    folder = "gpu" if backend.kind == "triton" else "cpu"
    found: type[QuantizedWeight] = getattr(import_module(f".{folder}.{module}", __package__), name)
    return found


def quantize_grouped(backend: Backend, precision: str, weight: Tensor) -> GroupedWeight:
    """Float matrices [E, N, K], on their device, in `precision`, a key of WEIGHTS."""
    if precision not in GROUPED_WEIGHTS:
        single = weight_class(backend, precision)
        return PerExpertWeight([single.quantize(own) for own in weight])
    module, name = GROUPED_WEIGHTS[precision]
    folder = "gpu" if backend.kind == "triton" else "cpu"
    found: GroupedWeight = getattr(import_module(f".{folder}.{module}", __package__), name).quantize(weight)
    return found


def experts_kernel(precision: str) -> str:
    """The name of what computes experts in `precision`, a key of WEIGHTS."""
    return GROUPED_WEIGHTS.get(precision, WEIGHTS[precision])[0]


def sampler_of(backend: Backend) -> Callable[[Tensor, Sequence[Draw]], tuple[Tensor, Tensor]]:
    """The kernel that draws tokens; see `kernels.cpu.sample`."""
    if backend.kind == "triton":
        from .gpu.sample import sample as on_gpu

        return on_gpu
    return on_cpu


def describe(
    backend: Backend,
    precision: str,
    fused: Mapping[str, int],
    experts: Mapping[str, int] | None = None,
    linears: Mapping[str, int] | None = None,
) -> str:
    """Which kernels serve what, in one line, for whoever starts an engine.

    `fused`: parts served by each fused kernel. `experts`: layers whose experts each kernel computes, "torch" as stored.
    `linears`: how many linear layers are in each precision, "none" as stored; all in `precision` where it is empty.
    """
    said = _linears(linears) if linears else _linears({precision: 0})
    for kernel, layers in (experts or {}).items():
        said += f", experts of {layers} layers {kernel} ({'as stored' if kernel == 'torch' else precision})"
    if backend.kind == "cpu":
        by = "torch's operators" if library() is None else "C"
        whole = f", {fused['layers']} whole layers" if "layers" in fused else ""
        return f"CPU kernels in {by}: attention paged_attention, {said}{whole}"
    import triton

    where = "the interpreter"
    if not backend.is_interpreted:
        tuned = "measured" if load_configurations(backend.device) else "default"
        where = f"{torch.cuda.get_device_name(backend.device)} ({tuned} configurations)"
    parts = "".join(f", {count} {kernel}" for kernel, count in fused.items())
    return f"Triton {triton.__version__} kernels on {where}: attention paged_attention over store_kv, {said}{parts}"


def _linears(counts: Mapping[str, int]) -> str:
    parts = []
    for precision, count in counts.items():
        what = f"{count} linear{'s' if count > 1 else ''}" if count else "linears"
        if precision in WEIGHTS:
            parts.append(f"{what} {WEIGHTS[precision][0]} ({precision})")
        else:
            parts.append(f"{what} torch{' (as stored)' if count else ''}")
    return ", ".join(parts)


def _interpreter() -> Backend:
    _require_triton()
    from triton import knobs

    if not knobs.runtime.interpret:
        raise ValueError(
            "device is 'interpreter', which is for tests: set TRITON_INTERPRET=1 before Triton is imported, or use 'cpu'."
        )
    return Backend("triton", torch.device("cpu"))


def _require_triton() -> None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "Serving on a GPU needs Triton, which cannot be imported here "
            f"({error}); install the 'gpu' extra, or use device = 'cpu'."
        ) from error
