"""The next token: drawn from the right distribution, and by nothing but its own sequence."""

import math

import pytest
import torch

from penstock.kernels.cpu.sample import gumbel_noise
from penstock.kernels.cpu.sample import sample as cpu_sampler
from penstock.scheduler import sampler
from penstock.scheduler.sampling_params import SamplingParams
from penstock.scheduler.sequence import Sequence


def sample(logits, seqs, eos_token_ids):
    return sampler.sample(logits, [sampler.Place(seq) for seq in seqs], eos_token_ids, cpu_sampler)


VOCAB = 50


def sequence(
    params: SamplingParams, *, prompt: list[int] | None = None, output: list[int] | None = None, seed: int = 0
):
    seq = Sequence("r", 0, prompt or [1], params, max_tokens=100, seed=seed)
    seq.token_ids += output or []
    return seq


def one(
    logits: torch.Tensor, params: SamplingParams, *, eos: list[int] | None = None, **kwargs
) -> int | None:
    token = sample(logits[None].clone(), [sequence(params, **kwargs)], eos or [])[0]
    return None if token is None else token.token_id


def support(logits: torch.Tensor, params: SamplingParams, draws: int = 400, **kwargs) -> set[int]:
    """Which tokens are drawn at all over many seeds."""
    seqs = [sequence(params, seed=seed, **kwargs) for seed in range(draws)]
    return {token.token_id for token in sample(logits.repeat(draws, 1), seqs, [])}


def test_draws_follow_the_softmax():
    torch.manual_seed(1)
    logits = torch.randn(VOCAB) * 1.5
    temperature, draws = 0.8, 40_000
    params = SamplingParams(temperature=temperature)
    counts = torch.zeros(VOCAB)
    for start in range(0, draws, 2000):
        seqs = [sequence(params, seed=start + i) for i in range(2000)]
        tokens = sample(logits.repeat(2000, 1), seqs, [])
        counts += torch.bincount(torch.tensor([t.token_id for t in tokens]), minlength=VOCAB)
    expected = torch.softmax(logits / temperature, 0) * draws
    usual = expected >= 5
    chi_square = ((counts - expected)[usual] ** 2 / expected[usual]).sum().item()
    freedom = int(usual.sum()) - 1
    # The fixed seed makes this one fixed number; five standard deviations are no accident.
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_draws_along_positions_of_one_seed_follow_the_softmax_too():
    logits = torch.tensor([0.0, 1.0, 2.0])
    params = SamplingParams(temperature=1.0)
    seqs = []
    for position in range(6000):
        seq = sequence(params, seed=7)
        seq.token_ids = [0] * (position + 1)
        seqs.append(seq)
    tokens = [t.token_id for t in sample(logits.repeat(6000, 1), seqs, [])]
    counts = torch.bincount(torch.tensor(tokens), minlength=3)
    expected = torch.softmax(logits, 0) * 6000
    assert ((counts - expected) ** 2 / expected).sum().item() < 2 + 5 * 2


def test_noise_is_finite_for_every_random_number():
    # The extremes of the generator come once in millions of tokens, which a large vocabulary meets daily.
    lowest, highest = math.inf, -math.inf
    for start in range(0, 40_000_000, 4_000_000):
        noise = gumbel_noise(3, 5, torch.arange(start, start + 4_000_000))
        lowest, highest = min(lowest, noise.min().item()), max(highest, noise.max().item())
    assert -4 < lowest < -2.7 and 15 < highest < 17


def test_noise_has_the_moments_of_gumbel():
    noise = gumbel_noise(11, 2, torch.arange(2_000_000)).double()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.005)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.01)


def test_noise_is_a_function_of_seed_position_and_token_alone():
    all_ids = torch.arange(1000)
    noise = gumbel_noise(5, 9, all_ids)
    some = torch.tensor([999, 0, 17, 501])
    assert torch.equal(gumbel_noise(5, 9, some), noise[some])
    assert not torch.equal(gumbel_noise(6, 9, all_ids), noise)
    assert not torch.equal(gumbel_noise(5, 10, all_ids), noise)
    assert torch.equal(gumbel_noise(5 - (1 << 64), 9, all_ids), noise)  # seeds count modulo 2^64


def test_a_token_does_not_depend_on_its_row_or_batch():
    torch.manual_seed(2)
    logits = torch.randn(8, VOCAB)
    various = [
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.3, top_p=0.7, logprobs=3),
        SamplingParams(temperature=0.7, min_p=0.1),
        SamplingParams(temperature=1.0, repetition_penalty=1.4),
        SamplingParams(temperature=1.0, top_k=10, top_p=0.9, min_p=0.05),
        SamplingParams(temperature=1.0, logprobs=0),
        SamplingParams(temperature=2.0, logit_bias={3: 5.0}),
    ]
    seqs = [sequence(params, prompt=[1, 2, 3], seed=row) for row, params in enumerate(various)]
    together = sample(logits.clone(), seqs, [])
    for order in (list(range(8)), [7, 3, 1, 0, 2, 4, 6, 5]):
        shuffled = sample(logits[order].clone(), [seqs[row] for row in order], [])
        assert [together[row] for row in order] == shuffled
    for row in range(8):
        assert sample(logits[row : row + 1].clone(), [seqs[row]], []) == [together[row]]


def test_temperature_zero_is_the_largest_logit():
    logits = torch.tensor([0.1, 3.0, 2.9])
    assert {one(logits, SamplingParams(temperature=0), seed=seed) for seed in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-20, 1e-38, 1e-45, 1e-300])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_tiny_temperature_draws_the_largest(temperature: float, scale: float):
    logits = torch.tensor([-1.0, 2.0, 3.0, -5.0]) * scale
    for extra in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        assert one(logits, SamplingParams(temperature=temperature, **extra)) == 2


def test_a_huge_temperature_is_uniform():
    logits = torch.tensor([1.0, 9.0, 3.0])
    assert support(logits, SamplingParams(temperature=1e30)) == {0, 1, 2}


def test_top_k_keeps_the_k_largest():
    logits = torch.tensor([1.0, 1.4, 1.2, 0.9, 1.1])
    assert support(logits, SamplingParams(top_k=3)) == {1, 2, 4}
    assert support(logits, SamplingParams(top_k=1)) == {1}
    for everything in (-1, 0, 5, 99):
        assert support(logits, SamplingParams(top_k=everything)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert support(logits, SamplingParams(top_p=0.05)) == {1}
    assert support(logits, SamplingParams(top_p=0.39)) == {1}
    assert support(logits, SamplingParams(top_p=0.5)) == {1, 3}
    assert support(logits, SamplingParams(top_p=0.75)) == {1, 3, 2}
    assert support(logits, SamplingParams(top_p=0.95)) == {0, 1, 2, 3}


def test_min_p_is_relative_to_the_likeliest():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert support(logits, SamplingParams(min_p=0.6)) == {1, 3}
    assert support(logits, SamplingParams(min_p=0.4)) == {1, 2, 3}
    assert support(logits, SamplingParams(min_p=1.0)) == {1}


def test_filters_combine():
    logits = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1]).log()
    assert support(logits, SamplingParams(top_k=3, top_p=0.7)) == {1, 2}
    assert support(logits, SamplingParams(top_k=4, min_p=0.45)) == {1, 2, 3}


def test_filters_leave_what_they_keep_in_proportion():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    seqs = [sequence(SamplingParams(top_k=2), seed=seed) for seed in range(4000)]
    drawn = [t.token_id for t in sample(logits.repeat(4000, 1), seqs, [])]
    assert drawn.count(0) / 4000 == pytest.approx(0.5 / 0.8, abs=0.03)


def adjusted(logits: list[float], params: SamplingParams, **kwargs) -> int | None:
    return one(torch.tensor(logits), params, **kwargs)


def test_presence_penalty_counts_once_and_only_output():
    params = SamplingParams(temperature=0, presence_penalty=0.5)
    assert adjusted([1.0, 0.6, 0.0], params, prompt=[0]) == 0
    assert adjusted([1.0, 0.6, 0.0], params, prompt=[2], output=[0]) == 1
    assert adjusted([1.2, 0.6, 0.0], params, prompt=[2], output=[0, 0, 0]) == 0


def test_frequency_penalty_counts_every_time():
    params = SamplingParams(temperature=0, frequency_penalty=0.5)
    assert adjusted([1.2, 0.6, 0.0], params, prompt=[2], output=[0]) == 0
    assert adjusted([1.2, 0.6, 0.0], params, prompt=[2], output=[0, 0]) == 1


def test_negative_penalties_reward():
    assert adjusted([1.0, 0.6], SamplingParams(temperature=0, presence_penalty=-2.0), output=[1]) == 1


def test_repetition_penalty_covers_prompt_and_output_and_both_signs():
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert adjusted([1.0, 0.6, 0.1], params, prompt=[0]) == 1
    assert adjusted([1.0, 0.6, 0.1], params, prompt=[2], output=[0]) == 1
    assert adjusted([-1.0, -1.5, -9.0], params, prompt=[0]) == 1  # negative logits move down as well
    assert adjusted([1.0, 1.5, -9.0], SamplingParams(temperature=0, repetition_penalty=0.5), prompt=[0]) == 0


def test_logit_bias_forces_and_forbids():
    logits = torch.randn(VOCAB)
    only = {token: -100.0 for token in range(VOCAB) if token != 17}
    assert support(logits, SamplingParams(logit_bias=only), draws=50) == {17}
    assert support(logits, SamplingParams(logit_bias={4: 100.0}), draws=50) == {4}
    assert one(logits, SamplingParams(temperature=0, logit_bias={int(logits.argmax()): -100.0})) == int(
        logits.topk(2).indices[1]
    )


def test_min_tokens_forbids_every_way_to_stop():
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(1,))
    logits = [3.0, 2.0, 1.0]
    assert adjusted(logits, params, eos=[0]) == 2
    assert adjusted(logits, params, eos=[0], output=[2]) == 2
    assert adjusted(logits, params, eos=[0], output=[2, 2]) == 0


def test_logprobs_are_of_the_raw_distribution():
    torch.manual_seed(3)
    logits = torch.randn(VOCAB)
    expected = torch.log_softmax(logits, 0)
    params = SamplingParams(temperature=0.5, top_k=4, logit_bias={9: 50.0}, logprobs=5)
    token = sample(logits[None].clone(), [sequence(params)], [])[0]
    assert token.token_id == 9
    assert token.logprob.logprob == pytest.approx(expected[9].item())
    best = expected.topk(5)
    assert [token_id for token_id, _ in token.logprob.top] == best.indices.tolist()
    assert [value for _, value in token.logprob.top] == pytest.approx(best.values.tolist())


def test_logprobs_zero_reports_the_token_alone_and_none_reports_nothing():
    logits = torch.randn(VOCAB)
    with_zero = sample(logits[None].clone(), [sequence(SamplingParams(temperature=0, logprobs=0))], [])[0]
    assert with_zero.logprob.top == [] and with_zero.logprob.logprob <= 0
    assert sample(logits[None].clone(), [sequence(SamplingParams(temperature=0))], [])[0].logprob is None


def test_more_logprobs_than_tokens_gives_all_tokens():
    token = sample(torch.randn(1, 6), [sequence(SamplingParams(logprobs=20))], [])[0]
    assert sorted(token_id for token_id, _ in token.logprob.top) == list(range(6))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("extra", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.0}])
def test_a_broken_row_gives_none_and_leaves_the_others(broken: float, extra: dict[str, float]):
    torch.manual_seed(4)
    logits = torch.randn(3, VOCAB)
    params = SamplingParams(**extra)
    healthy = sample(logits[:2].clone(), [sequence(params, seed=1), sequence(params, seed=2)], [])
    logits[2, 7] = broken
    seqs = [sequence(params, seed=1), sequence(params, seed=2), sequence(params, seed=3)]
    assert sample(logits.clone(), seqs, []) == [*healthy, None]


def test_a_model_may_mask_tokens_with_minus_infinity():
    logits = torch.tensor([0.0, float("-inf"), 1.0])
    assert support(logits, SamplingParams()) == {0, 2}
    assert support(logits, SamplingParams(top_p=0.999, min_p=0.01)) == {0, 2}


@pytest.mark.parametrize(
    "extreme",
    [
        {"top_p": 1e-46},
        {"top_p": 1e-320, "top_k": 5},
        {"temperature": 1e39, "min_tokens": 2},
        {"temperature": 1e300, "min_tokens": 2, "min_p": 0.5},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0},
        {"min_p": 1e-320},
    ],
)
def test_extreme_values_still_choose_a_token(extreme: dict[str, float]):
    """A request may be odd, but must not look like a broken model."""
    params = SamplingParams(**{"temperature": 1.0, **extreme})
    logits = torch.linspace(-30, 30, VOCAB)
    assert one(logits, params, eos=[3], prompt=[VOCAB - 1]) not in (None, 3)
