"""Attention in a model's own code is either seen for what it is or refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.errors import ModelLoadError
from penstock.models.attention_hook import ProbeContext
from penstock.models.inline_attention import attend_inline


def causal_mask() -> Tensor:
    """With its rule, as those that transformers makes for us at load."""
    mask = torch.zeros(1, 1, 3, 3)
    mask.rule = lambda batch, head, q, k: k <= q  # type: ignore[attr-defined]
    return mask


class OwnAttention(nn.Module):
    def __init__(self, weigh: Callable[..., Any]) -> None:
        super().__init__()
        self.weigh = weigh

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
        return self.weigh(query, key, value, mask)


class Model(nn.Module):
    def __init__(self, weigh: Callable[..., Any]) -> None:
        super().__init__()
        self.attention = OwnAttention(weigh)

    def forward(self, *tensors: Any) -> Any:
        return self.attention(*tensors)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / 3 + mask, dim=-1) @ v


def flat(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """Over [H, T, D], and scaled before."""
    scores = torch.bmm(q[0] / 3, k[0].transpose(1, 2)).view(1, 2, 3, 3) + mask
    weights = nn.functional.softmax(scores.view(2, 3, 3), dim=-1)
    return torch.bmm(nn.functional.dropout(weights, 0.5, training=False), v[0]).view(1, 2, 3, 4)


def added(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    zeros = torch.zeros(2, 3, 3)
    scores = torch.baddbmm(zeros, q[0], k[0].transpose(1, 2), beta=1.0, alpha=1 / 3).view(1, 2, 3, 3)
    return torch.matmul(torch.softmax((scores + mask).float(), -1), v)


@pytest.mark.parametrize("weigh", [plain, flat, added])
def test_what_is_plain_causal_attention_is_computed_so(weigh: Callable[..., Any]):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 3, 4, generator=generator) for _ in range(3))
    hidden = torch.full((3, 3), float("-inf")).triu(1)
    wanted = weigh(q, k, v, hidden)
    model = Model(weigh)
    assert attend_inline(model) == 1
    probe = ProbeContext()
    torch.testing.assert_close(model(q, k, v, causal_mask(), penstock=probe), wanted)
    assert list(probe.layers) == [0] and probe.rules


OTHERWISE: dict[str, tuple[Callable[..., Any], str]] = {
    "no mask": (lambda q, k, v, mask: torch.softmax(q @ k.mT, -1) @ v, "later ones"),
    "a mask without a rule": (lambda q, k, v, mask: plain(q, k, v, mask.clone()), "adds a bias or a mask"),
    "a bias": (
        lambda q, k, v, mask: torch.softmax(q @ k.mT + torch.ones(3) + mask, -1) @ v,
        "adds a bias or a mask",
    ),
    "a bias within the product": (
        lambda q, k, v, mask: torch.baddbmm(torch.ones(2, 3, 3), q[0], k[0].mT),
        "adds a bias",
    ),
    "a soft cap": (lambda q, k, v, mask: torch.tanh(q @ k.mT), "`tanh`"),
    "a method of scores": (lambda q, k, v, mask: (q @ k.mT).clamp(-1, 1), "`clamp`"),
    "a scale per head": (lambda q, k, v, mask: (q @ k.mT) * torch.ones(2, 1, 1), "more than one number"),
    "weights scaled": (
        lambda q, k, v, mask: torch.softmax(q @ k.mT + mask, -1) * 2,
        "scales its attention weights",
    ),
    "weights over queries": (
        lambda q, k, v, mask: torch.softmax(q @ k.mT + mask, 2) @ v,
        "other than the keys",
    ),
    "no softmax": (lambda q, k, v, mask: (q @ k.mT) @ v, "without a softmax"),
    "heads of keys interleaved": (lambda q, k, v, mask: plain(q, k[:, :1], v, mask), "groups heads"),
    "scores replaced": (
        lambda q, k, v, mask: torch.where(torch.ones(1, 1, 3, 3).bool(), q @ k.mT, torch.tensor(0.0)),
        "puts other scores",
    ),
    "scores regrouped": (lambda q, k, v, mask: (q @ k.mT).view(1, 2, 9, 1), "regroups"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_not_is_refused_by_name(name: str):
    weigh, message = OTHERWISE[name]
    model = Model(weigh)
    attend_inline(model)
    q = k = v = torch.ones(1, 2, 3, 4)
    with pytest.raises(ModelLoadError, match=message):
        model(q, k, v, causal_mask(), penstock=ProbeContext())
