"""Which optimizer moves which weights."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

WEIGHT_DECAY = 0.01
OPTIMIZERS = ("muon", "adamw")


def make_optimizers(
    module: nn.Module, others: Iterable[nn.Parameter], kind: str, learning_rate: float
) -> list[torch.optim.Optimizer]:
    """For all weights of `module` and `others` that learn.

    Muon (Jordan et al. 2024; scaled to AdamW's rates as in Liu et al. 2025, "Muon is Scalable for LLM Training") takes the
    matrices between embeddings and head, AdamW the rest; or AdamW takes all.
    """
    lookups = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    head: Any = module.get_output_embeddings()  # type: ignore[operator]
    lookups.add(id(head.weight))
    own = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in own if kind == "muon" and p.ndim == 2 and id(p) not in lookups]
    taken = {id(p) for p in matrices}
    rest = [p for p in (*own, *others) if id(p) not in taken]
    decayed, plain = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.95))
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=learning_rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def set_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
