"""The GPU draws the CPU's tokens: every filter alone and together, ties, broken rows."""

import random

import pytest
import torch

from penstock.kernels.cpu import sample as cpu
from penstock.kernels.draw import Draw
from penstock.kernels.gpu import sample as module
from penstock.kernels.gpu.config import Config
from penstock.kernels.gpu.sample import sample

GREEDY = Draw(0.0, -1, 1.0, 0.0, 1, 1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A row is read in several pieces."""
    monkeypatch.setattr(module, "DRAW", Config({"BLOCK": 64}, num_warps=1, num_stages=1))


def both(logits, draws, device):
    expected, _ = cpu.sample(logits.clone(), draws)
    found, best = sample(logits.to(device), draws)
    assert torch.isfinite(best).all()
    return found.cpu().tolist(), expected.tolist()


@pytest.mark.parametrize("vocab_size", [1, 50, 64, 333])
def test_draws_what_the_cpu_draws(vocab_size, device):
    rng = random.Random(0)
    draws = [GREEDY]
    draws += [
        Draw(
            rng.choice([0.3, 1.0, 1.7]),
            rng.choice([-1, 1, 5, 40, 1000]),
            rng.choice([1.0, 0.95, 0.5, 1e-9]),
            rng.choice([0.0, 0.01, 0.3, 1.0]),
            rng.getrandbits(64),
            rng.randrange(5000),
        )
        for _ in range(24)
    ]
    found, expected = both(torch.randn(len(draws), vocab_size) * 3, draws, device)
    assert found == expected


def test_of_equal_logits_the_first_stay(device):
    logits = torch.zeros(40, 100)
    logits[:, 7] = -1.0
    draws = [Draw(1.0, 1, 1.0, 0.0, seed, 3) for seed in range(20)]
    draws += [Draw(1.0, -1, 0.05, 0.0, seed, 3) for seed in range(20)]
    tokens, _ = sample(logits.to(device), draws)
    assert set(tokens[:20].tolist()) == {0}
    assert {0, 1} < set(tokens[20:].tolist()) <= {0, 1, 2, 3, 4}


def test_forbidden_tokens_and_both_zeros(device):
    logits = torch.full((2, 90), float("-inf"))
    logits[:, [3, 80]] = torch.tensor([0.0, -0.0])
    draws = [Draw(1.0, 2, 0.9999, 0.0, seed, 0) for seed in (1, 2)]
    found, expected = both(logits, draws, device)
    assert found == expected and set(found) <= {3, 80}


def test_a_row_without_finite_logits_says_so(device):
    logits = torch.randn(4, 70)
    logits[0, 5] = float("nan")
    logits[1] = float("-inf")
    logits[2, 9] = float("inf")
    for draw in (GREEDY, Draw(0.7, 5, 0.9, 0.1, 1, 1)):
        _, best = sample(logits.to(device), [draw] * 4)
        assert torch.isfinite(best).tolist() == [False, False, False, True]
    assert sample(logits[:0].to(device), [])[0].shape == (0,)


def test_noise_is_the_same_bits_of_the_same_seed(device):
    """The draw of flat logits is that of the noise alone."""
    draws = [Draw(1.0, -1, 1.0, 0.0, seed, 17) for seed in (0, 1, 2**63, 2**64 - 1)]
    found, expected = both(torch.zeros(4, 500), draws, device)
    assert found == expected and len(set(found)) > 1
