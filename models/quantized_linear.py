"""Replaces a loaded model's linear layers by quantized ones, layer by layer, so that both copies never stand side by side.

What is stored as floats is rounded here; what is stored as integers is served as those.

Linears that read the same input (q, k and v; gate and up) share one matrix: a third of the quantizations and calls.
"""

import ctypes
import mmap
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels.cpu.grouped_int8_matmul import GroupedInt8Weight
from ..kernels.cpu.int8_matmul import Int8Weight
from ..kernels.dispatch import Backend, QuantizedWeight, weight_class
from ..kernels.quantized_rows import QuantizedRows
from .compressed_tensors import StoredLinear
from .quantization_config import StoredScheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Routers pick experts by small differences between logits and cost next to nothing: they stay as stored.
ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate"})
# Siblings that transformers' models feed with one and the same tensor.
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Both forms of every matrix are kept up to this many weights in all: a faster single stream for a gigabyte at most.
KEEP_PLAIN_WEIGHTS = 1 << 30


class Handoff:
    """The one place where whoever writes an activation leaves its integers for the product that reads it next."""

    __slots__ = ("_rows", "_tensor")

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._rows: QuantizedRows | None = None

    def give(self, tensor: Tensor, rows: QuantizedRows) -> None:
        self._tensor, self._rows = tensor, rows

    def take(self, tensor: Tensor) -> QuantizedRows | None:
        """Those of this very tensor, or None."""
        return self._rows if tensor is self._tensor else None


class QuantizedLinear(nn.Module):
    """y = x W^T (+ b), [..., K] -> [..., N], with W in the precision of its weight."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.quantized = weight
        self.bias = bias
        self.handoff: Handoff | None = None
        self.in_features, self.out_features = weight.in_features, weight.out_features

    def forward(self, x: Tensor) -> Tensor:
        ready = None if self.handoff is None else self.handoff.take(x)
        if ready is not None:
            product: Any = self.quantized  # of W8A8, as only such a linear has a handoff
            out: Tensor = product.matmul_quantized(ready, self.bias, x.dtype)
        else:
            out = self.quantized.matmul(x.reshape(-1, self.quantized.in_features), self.bias)
        return out.view(*x.shape[:-1], self.quantized.out_features)


class SharedLinear:
    """Several linears of one input as one matrix. The first to be called computes for all; each takes its columns."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, sizes: list[int]) -> None:
        self.linear = QuantizedLinear(weight, bias)
        self.sizes = sizes
        self._input: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def take(self, index: int, x: Tensor) -> Tensor:
        # By identity: the held reference keeps the tensor's id from being given to another.
        if x is not self._input or self._parts[index] is None:
            self._input = x
            self._parts = list(self.linear(x).split(self.sizes, dim=-1))
        part = self._parts[index]
        assert part is not None
        self._parts[index] = None
        if not any(other is not None for other in self._parts):
            self._input = None
        return part


class SharedLinearPart(nn.Module):
    """One of the linears in a `SharedLinear`."""

    def __init__(self, shared: SharedLinear, index: int) -> None:
        super().__init__()
        self.shared = shared
        self._index = index
        self.quantized = shared.linear.quantized
        self.in_features, self.out_features = self.quantized.in_features, shared.sizes[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.shared.take(self._index, x)


def quantize_linears(
    model: "PreTrainedModel", backend: Backend, precision: str | None, output: str | None = None
) -> Counter[str]:
    """Swap every linear layer (`nn.Linear`, GPT-2's `Conv1D`) but routers; returns how many were swapped to each precision.

    Integers as stored keep the precision that they are stored in. On a CPU what is left (norms, biases, routers) becomes
    float32; the embedding keeps its dtype and gives float32.

    Args:
        precision: to round to what is stored in floats; None leaves it so.
        output: the same for the output layer alone, where it is another.
    """
    from transformers.pytorch_utils import Conv1D

    embedding = model.get_input_embeddings()
    output_layer = model.get_output_embeddings() if output else None
    # A weight may have several users (the embedding and the head, a layer used twice); it goes with none of them.
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    swapped: Counter[str] = Counter()
    inside_routers = {id(inside) for router in routers(model) for inside in router.modules()}

    def scheme_of(name: str, module: nn.Module) -> StoredScheme | str | None:
        # A single input or output is not worth it, and the product of a single input comes out wrong (`Int8Weight`).
        if not isinstance(module, StoredLinear | nn.Linear | Conv1D) or min(_sizes(module)) < 2:
            return None
        if name in ROUTER_NAMES:
            return None
        if isinstance(module, StoredLinear):
            return module.scheme
        return output if module is output_layer else precision

    for parent in list(model.modules()):
        if id(parent) in inside_routers:
            continue
        children = dict(parent.named_children())
        schemes = {
            name: own for name, child in children.items() if (own := scheme_of(name, child)) is not None
        }
        for names in SHARED_INPUTS:
            own = schemes.get(names[0])
            siblings = [children[name] for name in names if own is not None and schemes.get(name) == own]
            if own is None or len(siblings) < len(names) or any(isinstance(one, Conv1D) for one in siblings):
                continue
            sizes = [_sizes(one)[0] for one in siblings]
            shared = SharedLinear(_weight(siblings, backend, own), _shared_bias(siblings, backend), sizes)
            for index, name in enumerate(names):
                setattr(parent, name, SharedLinearPart(shared, index))
                del schemes[name]
            swapped[_precision(own)] += len(names)
            _let_go_of(siblings, users)
        for name, own in schemes.items():
            linear = children[name]
            setattr(parent, name, QuantizedLinear(_weight([linear], backend, own), _bias(linear, backend)))
            swapped[_precision(own)] += 1
            _let_go_of([linear], users)
    if backend.kind == "cpu":
        for module in model.modules():
            if module is not embedding:
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.float()
        embedding.register_forward_hook(_to_float32)
    return swapped


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs."""
    if isinstance(linear, nn.Linear | StoredLinear):
        return linear.out_features, linear.in_features
    inputs, outputs = linear.weight.shape  # type: ignore[misc]
    return outputs, inputs


def _precision(scheme: StoredScheme | str) -> str:
    return scheme if isinstance(scheme, str) else scheme.precision


def _weight(linears: Sequence[nn.Module], backend: Backend, scheme: StoredScheme | str) -> QuantizedWeight:
    """One matrix of linears that have the same scheme: integers as stored, or floats to be rounded."""
    kind = weight_class(backend, _precision(scheme))
    stored = [linear.integers() for linear in linears if isinstance(linear, StoredLinear)]
    if stored:
        # `cat` copies a single one, too: its own memory is let go.
        return kind.from_integers(*(torch.cat(part).to(backend.device) for part in zip(*stored, strict=True)))
    floats = [_matrix(linear).to(backend.device) for linear in linears]
    return kind.quantize(floats[0] if len(floats) == 1 else torch.cat(floats))


def _matrix(linear: Any) -> Tensor:
    """[N, K], a view."""
    weight: Tensor = linear.weight.detach()
    return weight if isinstance(linear, nn.Linear) else weight.t()


def _let_go_of(linears: Sequence[nn.Module], users: Counter[int]) -> None:
    for linear in linears:
        for parameter in linear.parameters():
            if parameter.dim() == 2 and users[id(parameter)] == 1:
                let_go(parameter)


def routers(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in ROUTER_NAMES]


def pack_linears(model: nn.Module) -> None:
    """Make the packed form of all INT8 matrices that a CPU multiplies with. Takes seconds where quantizing takes tenths, and
    changes no result, so a small model packs in the background while it serves already; a large one, which keeps one form
    only, before."""
    found: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, QuantizedLinear | SharedLinearPart):
            found[id(module.quantized)] = module.quantized
        for held in vars(module).values():
            if isinstance(held, GroupedInt8Weight):
                found |= {id(weight): weight for weight in held.experts}
    weights = [weight for weight in found.values() if isinstance(weight, Int8Weight)]
    keep_plain = sum(weight.out_features * weight.in_features for weight in weights) <= KEEP_PLAIN_WEIGHTS
    if keep_plain:
        threading.Thread(target=_pack_all, args=(weights, True), name="penstock-pack", daemon=True).start()
    else:
        _pack_all(weights, False)


def _pack_all(weights: list[Int8Weight], keep_plain: bool) -> None:
    for weight in weights:
        weight.pack(keep_plain=keep_plain)


def let_go(weight: Tensor) -> None:
    """Drop a dead weight's pages at once. Loading maps the file into memory, and pages stay counted until the last
    tensor of the file is gone, which the embedding never is."""
    start = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = weight.data_ptr() + weight.numel() * weight.element_size() - start
    if length >= mmap.PAGESIZE and sys.platform == "linux":
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start),
            ctypes.c_size_t(length // mmap.PAGESIZE * mmap.PAGESIZE),
            mmap.MADV_DONTNEED,
        )


def _shared_bias(linears: Sequence[nn.Module], backend: Backend) -> Tensor | None:
    biases = [_bias(linear, backend) for linear in linears]
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            torch.zeros(_sizes(linear)[0], device=backend.device) if bias is None else bias
            for bias, linear in zip(biases, linears, strict=True)
        ]
    )


def _bias(linear: nn.Module, backend: Backend) -> Tensor | None:
    bias = linear.bias
    return bias.detach().to(backend.device, torch.float32) if isinstance(bias, Tensor) else None


def _to_float32(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.float()
