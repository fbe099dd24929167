"""Attention of models that compute it in their own code, in place, seen as it happens.

Inside such a model's attention modules a product of queries and keys gives no tensor but `Scores`: a promise that remembers
the scale and the mask, becomes weights by a softmax, and is kept by our attention once it is multiplied with values.
Whatever else a model does with its scores is refused by name, so that nothing is computed otherwise than the model defines.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelLoadError
from . import attention_hook

_PRODUCTS = {torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__}


def attend_inline(model: nn.Module) -> int:
    """From now on the attention modules of `model` attend over the KV cache of the context that it is called with, as the
    keyword `penstock`. Returns how many there are. For a model that one thread calls at a time.
    """
    held: dict[str, Any] = {}

    def hold(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        held["penstock"] = kwargs.pop("penstock")
        return args, kwargs

    model.register_forward_pre_hook(hold, with_kwargs=True)
    attentions = [module for module in model.modules() if _is_innermost_attention(module)]
    for layer, module in enumerate(attentions):
        module.forward = _watched(module, layer, held)
    return len(attentions)


def _is_innermost_attention(module: nn.Module) -> bool:
    return sum("Attention" in type(part).__name__ for part in module.modules()) == 1 and (
        "Attention" in type(module).__name__
    )


def _watched(module: nn.Module, layer: int, held: dict[str, Any]) -> Callable[..., Any]:
    forward = module.forward
    windows: list[int | None] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        with _Watch(type(module).__name__, layer, held["penstock"], windows):
            return forward(*args, **kwargs)

    return watched


class _Watch(TorchFunctionMode):
    """Turns products of queries [..., T, D] and keys [..., D, T] into `Scores`; passes all else on.

    `windows` keeps, from the probe on, the window of the mask that the module itself holds, if it does.
    """

    def __init__(self, where: str, layer: int, context: Any, windows: list[int | None]) -> None:
        super().__init__()
        self.where, self.layer, self.context, self.windows = where, layer, context, windows
        self.attending = False  # our own products are none of the model's

    @property
    def probes(self) -> bool:
        return isinstance(self.context, attention_hook.ProbeContext)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.attending:
            return func(*args, **kwargs)
        if func in _PRODUCTS and not kwargs and _are_queries_and_keys(*args):
            return Scores(self, *args)
        if func is torch.baddbmm and _are_queries_and_keys(*args[1:]):
            if self.probes and args[0].any():
                raise _refused(self.where, "adds a bias to its attention scores")
            return Scores(self, *args[1:], scaling=kwargs.get("alpha", 1.0))
        return func(*args, **kwargs)


def _are_queries_and_keys(query: Any, key: Any) -> bool:
    return (
        isinstance(query, Tensor)
        and isinstance(key, Tensor)
        and query.ndim == key.ndim >= 3
        and query.shape[-2] == key.shape[-1]
        and query.shape[-1] == key.shape[-2]
    )


class Scores:
    """What attention would be computed of: `shape` is [..., T, T]. `weights`: the softmax is taken."""

    def __init__(
        self,
        watch: _Watch,
        query: Tensor,
        key: Tensor,
        *,
        scaling: float = 1.0,
        shape: tuple[int, ...] = (),
        weights: bool = False,
        rules: tuple[attention_hook.MaskRule, ...] = (),
    ) -> None:
        self.watch, self.query, self.key = watch, query, key
        self.scaling, self.weights, self.rules = scaling, weights, rules
        self.shape = torch.Size(shape or (*query.shape[:-1], key.shape[-1]))
        self.dtype, self.device = query.dtype, query.device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _refused(self.watch.where, f"takes `{name}` of its attention scores")

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def view(self, *shape: Any) -> "Scores":
        sizes = torch.empty(self.shape, device="meta").view(*shape).shape
        if sizes[-2:] != self.shape[-2:]:
            raise _refused(self.watch.where, "regroups its attention scores")
        return self._but(shape=sizes)

    reshape = view

    def to(self, *_: Any, **__: Any) -> "Scores":
        """Ours are float32 within."""
        return self

    float = type_as = contiguous = to

    def __mul__(self, factor: Any) -> "Scores":
        if not isinstance(factor, int | float) and not (isinstance(factor, Tensor) and factor.numel() == 1):
            raise _refused(self.watch.where, "multiplies its attention scores by more than one number")
        if self.weights or float(factor) <= 0:
            raise _refused(self.watch.where, "scales its attention weights")
        return self._but(scaling=self.scaling * float(factor))

    __rmul__ = __imul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Scores":
        return self.__mul__(1 / divisor)

    __itruediv__ = __truediv__

    def __add__(self, mask: Any) -> "Scores":
        """`mask`: None while serving, where transformers makes none; at load one of those that carry their rule."""
        if mask is None:
            return self
        rule = getattr(mask, "rule", None)
        if rule is None or self.weights:
            raise _refused(self.watch.where, "adds a bias or a mask of its own to its attention scores")
        return self._but(rules=(*self.rules, rule))

    __radd__ = __iadd__ = __add__

    def __matmul__(self, value: Tensor) -> Tensor:
        """value [..., T, Dv] -> [..., T, Dv]"""
        if not self.weights:
            raise _refused(self.watch.where, "multiplies values by its attention scores, without a softmax")
        query, key = _heads(self.query), _heads(self.key.transpose(-1, -2))
        value_heads = _heads(value)
        if len(key) != len(value_heads) or len(key) not in (1, len(query)):
            raise _refused(self.watch.where, "groups heads in a way of its own")
        if self.watch.probes and not self.rules:
            raise _refused(self.watch.where, "attends to all tokens, also to later ones")
        self.watch.attending = True
        out = attention_hook.attend(
            self.watch.layer,
            query[None].to(value.dtype),
            key[None].to(value.dtype),
            value_heads[None],
            _all_of(self.rules),
            self.watch.context,
            scaling=self.scaling,
            sliding_window=self.watch.windows[0] if self.watch.windows else None,
        )  # [1, T, Hq, Dv]
        self.watch.attending = False
        return out[0].transpose(0, 1).reshape(*self.shape[:-1], value.shape[-1])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """torch's functions, where one of the arguments is a `Scores`."""
        kwargs = kwargs or {}
        scores = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, cls))
        name = func.__name__.strip("_")
        match args:
            case (cls(), *_) if name == "softmax":
                if kwargs.get("dim", args[1] if len(args) > 1 else None) not in (-1, len(scores.shape) - 1):
                    raise _refused(scores.watch.where, "takes a softmax over other than the keys")
                return scores._but(weights=True)
            case (cls(), *_) if name == "dropout" and not kwargs.get("training"):
                return scores
            case (cls(), value) if func in _PRODUCTS:
                return scores @ value
            case (cls(), Tensor() as least) if (
                name == "max" and least.item() <= torch.finfo(scores.dtype).min
            ):
                return scores
            case (Tensor() as seen, cls(), Tensor() as least) if name == "where":
                if scores.watch.probes and least.item() > torch.finfo(scores.dtype).min:
                    raise _refused(scores.watch.where, "puts other scores in place of its own")
                return scores._where(seen)
        raise _refused(scores.watch.where, f"applies `{name}` to its attention scores")

    def _where(self, seen: Tensor) -> "Scores":
        """`seen`: a part of what the module holds for all pairs of positions, here by the numbers of rows."""
        if not self.watch.probes:
            return self
        held = seen if seen._base is None else seen._base
        if seen.dtype is not torch.bool or held.ndim != 4 or len(held) != 1:
            raise _refused(self.watch.where, "masks its attention scores in a way of its own")
        window = int(held[0, 0, -1].sum())
        self.watch.windows[:] = [window if window < held.shape[-1] else None]
        return self._but(rules=(*self.rules, lambda batch, head, q, k: held[0, 0, q.cpu(), k.cpu()]))

    def _but(self, **changed: Any) -> "Scores":
        kept = {name: getattr(self, name) for name in ("scaling", "shape", "weights", "rules")}
        return Scores(self.watch, self.query, self.key, **(kept | changed))


def _all_of(rules: tuple[attention_hook.MaskRule, ...]) -> attention_hook.MaskRule | None:
    if not rules:
        return None

    def rule(*place: Tensor) -> Tensor:
        return torch.stack([torch.broadcast_to(one(*place).cpu(), place[2].shape) for one in rules]).all(0)

    return rule


def _heads(tensor: Tensor) -> Tensor:
    """[..., T, D] of one sequence -> [H, T, D]"""
    return tensor.reshape(math.prod(tensor.shape[:-2]), *tensor.shape[-2:])


def _refused(where: str, what: str) -> ModelLoadError:
    return ModelLoadError(
        f"{where} {what}, which Penstock does not compute; serve this model with another engine."
    )
