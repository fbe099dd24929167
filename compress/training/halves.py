"""A causal language model in two halves: the backbone, which gives hidden states, and the head, which makes logits of them.

Losses need the halves: logits of all positions at once are the largest tensor of a step (4,096 positions of a
vocabulary of 152,000 take 2.5 GB in float32), hidden states are small.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import CompressError


@dataclass(frozen=True, slots=True)
class Head:
    """Logits are `scale * (hidden @ weight.T + bias)`, bent by tanh to within `softcap` where there is one.

    Attributes:
        weight: [V, D]; bias: [V] or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """[N, D] to [N, V]."""
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


@dataclass(frozen=True, slots=True)
class Halves:
    """`backbone(input_ids=..., use_cache=False).last_hidden_state` is what `head` takes."""

    module: Any
    backbone: Callable[..., Any]
    head: Head


def split(module: Any) -> Halves:
    """The halves of a transformers causal language model, checked against its own logits.

    Raises CompressError where its head does something that is not known here, or its logits are no numbers.
    """
    output: Any = module.get_output_embeddings()
    if output is None or not isinstance(getattr(output, "weight", None), Tensor):
        raise _unsupported(module)
    config = module.config.get_text_config()
    scaling = getattr(config, "logits_scaling", None)
    scale = 1 / scaling if scaling else getattr(config, "logit_scale", None) or 1.0
    head = Head(output.weight, output.bias, scale, getattr(config, "final_logit_softcapping", None))
    halves = Halves(module, module.base_model, head)
    _check(halves, config.vocab_size)
    return halves


@torch.no_grad()
def _check(halves: Halves, vocab_size: int) -> None:
    module = halves.module
    was_training = module.training
    module.eval()
    ids = torch.arange(8, device=module.device)[None] % vocab_size
    expected = module(input_ids=ids, use_cache=False).logits[0].float()
    found = halves.head(halves.backbone(input_ids=ids, use_cache=False).last_hidden_state[0]).float()
    module.train(was_training)
    if not bool(expected.isfinite().all()):
        name = module.name_or_path or type(module).__name__
        raise CompressError(
            f"{name} gives logits that are not numbers (NaN or infinite); its weights are broken, or its numbers overflow "
            "in this dtype."
        )
    error = (found - expected).norm() / expected.norm().clamp_min(1e-9)
    if not error < 0.02:  # bfloat16 rounds to 0.004; a forgotten factor is off by far more
        raise _unsupported(module)


def _unsupported(module: Any) -> CompressError:
    return CompressError(
        f"{type(module).__name__} makes its logits in a way that training does not know (a linear layer, a factor "
        "and a soft cap are known); it cannot be trained here."
    )
