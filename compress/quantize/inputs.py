"""What the linear layers of a block are given: which of them read the same tensor, who wrote it, and how it is spread."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.quantized_linear import ROUTER_NAMES

# Rows kept to measure errors with.
SAMPLE = 512


@dataclass(slots=True)
class Inputs:
    """Of the linears that read one tensor, whose rows are x [K].

    Attributes:
        names: of the linears, in the order they are called; source: of the norm that wrote the tensor, if one did.
        hessian: [K, K], the sum of x x^T over all rows (half the Hessian of the squared error of an output).
        sample: [S, K], rows from all over the texts.
        right_sample, drift: where the layers before are rounded, the same rows [S, K] in the model as it is, r, and
            [K, K], the sum of (r - x) x^T; None where x are the right ones.
    """

    names: list[str]
    source: str | None
    hessian: Tensor
    sample: Tensor
    right_sample: Tensor | None = None
    drift: Tensor | None = None


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Those that may be quantized: routers pick experts by small differences, and cost next to nothing."""
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] not in ROUTER_NAMES
        and min(module.weight.shape) > 1
    }


def weights_of(block: nn.Module, names: list[str]) -> list[Tensor]:
    modules: list[Any] = [block.get_submodule(name) for name in names]
    return [module.weight.data for module in modules]


def observe(block: nn.Module, run: Callable[[int], object], keep: list[Tensor]) -> list[Inputs]:
    """What `block`'s linears are given while `run` computes each batch, by number.

    `keep`: of each batch, [B, T], where there are tokens. Linears that are never called are in none.
    """
    total = sum(int(mask.sum()) for mask in keep)
    stride = -(-total // SAMPLE)
    written: dict[int, str] = {}
    groups: dict[int, Inputs] = {}
    leaders: dict[str, Inputs] = {}
    samples: dict[str, list[Tensor]] = {}
    alive: list[object] = []  # an address says which tensor it is only while the tensor lives
    mask = keep[0]
    grouping = True

    def on_norm(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            alive.append(output)
            written[output.untyped_storage().data_ptr()] = name

    def on_linear(name: str, x: Tensor) -> None:
        if grouping:
            place = x.untyped_storage().data_ptr()
            alive.append(x)
            if place in groups and groups[place].hessian.shape[0] == x.shape[-1]:
                groups[place].names.append(name)
                return
            width = x.shape[-1]
            groups[place] = Inputs([name], written.get(place), torch.zeros(width, width), torch.empty(0))
            leaders[name] = groups[place]
        elif name not in leaders:
            return
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == mask.numel():  # experts get some of the rows, and padding goes unnoticed among them
            rows = rows[mask.flatten()]
        rows = rows.float()
        leaders[name].hessian.addmm_(rows.t(), rows)
        samples.setdefault(name, []).append(rows[::stride].clone())

    handles = [
        module.register_forward_hook(lambda _module, _args, output, name=name: on_norm(name, output))
        for name, module in block.named_modules()
        if _is_norm(module)
    ] + [
        module.register_forward_pre_hook(lambda _module, args, name=name: on_linear(name, args[0]))
        for name, module in linears(block).items()
    ]
    try:
        for number, mask in enumerate(keep):  # noqa: B007  (read by `on_linear`)
            run(number)
            grouping = False
            alive.clear()
    finally:
        for handle in handles:
            handle.remove()
    for name, own in leaders.items():
        own.sample = torch.cat(samples[name])
    return list(leaders.values())


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1 and not any(True for _ in module.children())
