"""How far a student's distribution is from its teacher's, position by position. Pure functions of logits.

The generalised Jensen-Shannon divergence and what becomes of it at its ends: Agarwal et al. 2024, "On-Policy Distillation of
Language Models" (GKD). Reverse KL for language models: Gu et al. 2024, "MiniLLM". Temperature: Hinton et al. 2015.
"""

import math

import torch
from torch import Tensor

DIVERGENCES = ("forward-kl", "reverse-kl", "jsd")


def divergence(
    kind: str, student: Tensor, teacher: Tensor, *, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """[C] of two logits [C, V], in float32 at least.

    Args:
        kind: "forward-kl" is KL(teacher || student), "reverse-kl" KL(student || teacher), "jsd" the generalised one.
        temperature: divides both logits; the result is multiplied by its square, so that gradients keep their size.
        beta: of "jsd": near 0 like forward KL, near 1 like reverse KL, each divided by what it tends to vanish with.
    """
    p, q = _log_probs(teacher, temperature), _log_probs(student, temperature)
    if kind == "forward-kl":
        found = _kl(p, q)
    elif kind == "reverse-kl":
        found = _kl(q, p)
    else:
        assert kind == "jsd" and 0 < beta < 1
        mixed = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        found = beta * _kl(p, mixed) + (1 - beta) * _kl(q, mixed)
    return found * temperature**2


def _log_probs(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (wide / temperature).log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities: the sum over the vocabulary of exp(p) * (p - q)."""
    return (p.exp() * (p - q)).sum(-1)
