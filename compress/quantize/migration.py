"""Moves scale across a tensor: what is hard to round goes where it is easy, and the model computes the same.

Channel j of what linears read is divided by s_j in what writes it (a norm's weight, or the rows of the linear before), and
their columns multiplied by it. After SmoothQuant (Xiao et al. 2022), whose s_j = max|x_j|^a / max|w_j|^(1-a) is for
rounded activations, and AWQ (Lin et al. 2023), whose s_j = mean|x_j|^a is for rounded weights. Here both are tried at every
site, each with every a, and what lowers the error of the layers' outputs most is taken, if anything does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import Inputs, weights_of
from .precision import Precision
from .rounding import round_activation, rounded

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
# A gain below this is not worth a changed model: the next texts may show none.
LEAST_GAIN = 0.03
# What the block adds may move by when a scale goes from one side to the other, relative: rounding in float32.
SAME = 1e-3
# The linear whose rows are the channels that another reads, by their names in transformers' models.
WRITERS = {"o_proj": "v_proj", "down_proj": "up_proj"}


@dataclass(frozen=True, slots=True)
class Site:
    """Where scale can be moved: what writes a tensor, and the linears that read it.

    Attributes:
        repeats: of each group of channels, so many in a row are copies of the writer's (KV heads shared by query heads).
        group: channels of such a group.
        offset: what a norm adds to its weight before multiplying by it.
    """

    writer: str
    repeats: int = 1
    group: int = 1
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Migration:
    """Attributes:
    kind: "smoothquant" or "awq", whose formula gave the scales; error: of the outputs, as a share of what it was.
    """

    kind: str
    alpha: float
    error: float

    def __str__(self) -> str:
        return f"{self.kind} {self.alpha:g}"


@torch.no_grad()
def site_of(block: nn.Module, inputs: Inputs, added: Callable[[], Tensor]) -> Site | None:
    """Where the scale of `inputs` can go, if moving it leaves the same what the block adds to its input, which is tried.

    (Not its output: beside what comes in, which it passes on, a wrong sum might not be seen.)
    """
    candidates = list(_candidates(block, inputs))
    if not candidates:
        return None
    before = added()
    draw = torch.Generator().manual_seed(0)
    for site in candidates:
        width = inputs.hessian.shape[0]
        trial = _shared(torch.rand(width, generator=draw) * 1.5 + 0.5, site)
        held = _copies(block, site, inputs)
        _move(block, site, inputs.names, trial)
        moved = added()
        _put_back(held)
        if float((moved - before).norm() / before.norm().clamp_min(1e-30)) < SAME:
            return site
    return None


@torch.no_grad()
def migrate(
    block: nn.Module, site: Site, inputs: Inputs, precision: Precision, dtype: torch.dtype
) -> Migration | None:
    """Searches, and moves the scale in `block` and in `inputs` where that lowers the error of the linears' outputs.

    `dtype`: what a norm's weight is stored in; the scales are such that rounding it to that loses nothing.
    """
    weight = torch.cat(weights_of(block, inputs.names))
    sample = inputs.sample
    wanted = sample @ weight.t()

    def error(scale: Tensor) -> float:
        scaled = weight * scale
        x = sample / scale
        if precision.rounds_activations:
            x = round_activation(x)
        return float((x @ rounded(scaled, precision).t() - wanted).square().sum())

    base = error(torch.ones_like(sample[0]))
    best, best_scale, found = base * (1 - LEAST_GAIN), None, None
    for kind, alpha, scale in _scales(sample, weight):
        candidate = _storable(block, site, _shared(scale, site), dtype)
        this = error(candidate)
        if this < best:
            best, best_scale, found = this, candidate, Migration(kind, alpha, this / base)
    if best_scale is None:
        return None
    _move(block, site, inputs.names, best_scale)
    inputs.sample = sample / best_scale
    inputs.hessian = inputs.hessian / best_scale[:, None] / best_scale
    return found


def _scales(sample: Tensor, weight: Tensor) -> Iterator[tuple[str, float, Tensor]]:
    largest = sample.abs().amax(dim=0).clamp_min(1e-5)
    mean = sample.abs().mean(dim=0).clamp_min(1e-5)
    weights = weight.abs().amax(dim=0).clamp_min(1e-5)
    for alpha in ALPHAS:
        yield "smoothquant", alpha, _centred(largest**alpha / weights ** (1 - alpha))
        yield "awq", alpha, _centred(mean**alpha)


def _centred(scale: Tensor) -> Tensor:
    return scale / (scale.max() * scale.min()).sqrt()


def _candidates(block: nn.Module, inputs: Inputs) -> Iterator[Site]:
    if inputs.source is not None:
        yield Site(inputs.source)
        yield Site(inputs.source, offset=1.0)  # Gemma's norms multiply by 1 + weight
    if len(inputs.names) == 1:
        parent, _, name = inputs.names[0].rpartition(".")
        module: Any = block.get_submodule(parent)
        writer = getattr(module, WRITERS.get(name, ""), None)
        if isinstance(writer, nn.Linear):
            width, written = inputs.hessian.shape[0], writer.weight.shape[0]
            path = f"{parent}.{WRITERS[name]}" if parent else WRITERS[name]
            if width == written:
                yield Site(path)
            elif width % written == 0 and isinstance(getattr(module, "head_dim", None), int):
                yield Site(path, repeats=width // written, group=module.head_dim)


def _shared(scale: Tensor, site: Site) -> Tensor:
    """[K], the same for channels that are copies of one."""
    if site.repeats == 1:
        return scale
    heads = scale.view(-1, site.repeats, site.group)
    return heads.amax(dim=1, keepdim=True).expand_as(heads).reshape(-1)


def _storable(block: nn.Module, site: Site, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` as it is after the writer's new weight is rounded to what it is stored in. (A linear's is rounded to integers
    anyway, later.)"""
    writer: Any = block.get_submodule(site.writer)
    if isinstance(writer, nn.Linear):
        return scale
    factor = writer.weight + site.offset
    stored = (factor / scale - site.offset).to(dtype).float() + site.offset
    if getattr(writer, "bias", None) is not None or not bool((stored != 0).all()):
        return scale
    return torch.where(factor == 0, scale, factor / stored)


def _move(block: nn.Module, site: Site, readers: list[str], scale: Tensor) -> None:
    writer: Any = block.get_submodule(site.writer)
    own = scale if site.repeats == 1 else scale.view(-1, site.repeats, site.group)[:, 0].reshape(-1)
    if isinstance(writer, nn.Linear):
        writer.weight.data /= own[:, None]
    else:
        writer.weight.data = (writer.weight.data + site.offset) / own - site.offset
    if getattr(writer, "bias", None) is not None:
        writer.bias.data = writer.bias.data / own
    for name in readers:
        linear: Any = block.get_submodule(name)
        linear.weight.data *= scale


def _copies(block: nn.Module, site: Site, inputs: Inputs) -> list[tuple[nn.Parameter, Tensor]]:
    modules: list[Any] = [block.get_submodule(name) for name in (site.writer, *inputs.names)]
    return [
        (parameter, parameter.data.clone())
        for module in modules
        for parameter in module.parameters(recurse=False)
    ]


def _put_back(held: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, data in held:
        parameter.data = data
