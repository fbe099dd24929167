"""How far a model is from its reference on texts: perplexity, KL divergence, agreement of the most likely token.

KL and agreement are what a gate goes by. Perplexity alone misleads: it may fall while the answers change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import CompressError
from ..texts import Tokens
from .estimate import Estimate, by_topic, interval, resampled_totals
from .findings import Findings
from .scorers import Scorer

# Of one model's float32 logits at a time. Their softmaxes take some ten times as much (measured, vocabulary of 152k).
RUN_BYTES = 32 << 20
# As many rows as a step of the engine takes by default.
MOST_ROWS = 512
LEAST_TEXTS = 2

# Columns of what is summed per text.
LOSS, REFERENCE_LOSS, DIVERGENCE, AGREED, TOKENS = range(5)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate beside its reference, over the tokens that a model writes; intervals are over other texts like these.

    Attributes:
        perplexity, reference_perplexity: exp of the mean of -log p(token).
        perplexity_change: the candidate's over the reference's, less 1, on the same texts.
        kl: mean of KL(reference || candidate) in nats per token.
        agreement: share of the tokens at which both find the same token most likely.
        topics: that the texts are about; None where each is of its own.
    """

    perplexity: Estimate
    reference_perplexity: Estimate
    perplexity_change: Estimate
    kl: Estimate
    agreement: Estimate
    topics: int | None


def compare(
    candidate: Scorer,
    reference: Scorer,
    texts: Sequence[Tokens],
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Comparison:
    """See `compare_all`."""
    return compare_all([candidate], reference, texts, progress=progress)[0]


def compare_all(
    candidates: Sequence[Scorer],
    reference: Scorer,
    texts: Sequence[Tokens],
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
    findings: Findings | None = None,
) -> list[Comparison]:
    """Each candidate against `reference`, whose logits are computed once, text by text.

    Args:
        texts: at least two, for the intervals; what counts of one is its tokens with `learn` set, but for the very first.
        progress: told how many texts are done, and of how many.
        findings: of the same models on the same texts, as far as an earlier call came; what is computed is added.

    Raises CompressError before anything is computed where a model has another vocabulary or takes shorter texts, or there is
    nothing to measure; afterwards where a model gives logits that are no numbers.
    """
    _check(candidates, reference, texts)
    findings = Findings() if findings is None else findings
    rows = max(1, min(MOST_ROWS, RUN_BYTES // (4 * reference.vocab_size)))
    sums = torch.zeros(len(candidates), len(texts), 5, dtype=torch.double)
    for number, text in enumerate(texts):
        found = findings.get(f"text {number}")
        if found is None:
            found = _sums(candidates, reference, text, number, rows).tolist()
            findings.keep(f"text {number}", found)
        sums[:, number] = torch.tensor(found, dtype=torch.double)
        progress(number + 1, len(texts))
    topics = by_topic([text.topic for text in texts])
    return [_comparison(table, topics) for table in sums]


def _sums(candidates: Sequence[Scorer], reference: Scorer, text: Tokens, number: int, rows: int) -> Tensor:
    """[candidates, 5] of one text."""
    sums = torch.zeros(len(candidates), 5, dtype=torch.double)
    if not any(text.learn[1:]):
        return sums
    # Each computes once: a candidate may be the reference itself.
    scorers = list({id(scorer): scorer for scorer in (reference, *candidates)}.values())
    places = [scorers.index(candidate) for candidate in candidates]
    start = 0
    for runs in zip(*(scorer.logits(text.ids[:-1], rows) for scorer in scorers), strict=True):
        for scorer, run in zip(scorers, runs, strict=True):
            _check_numbers(run, scorer, number)
        stop = start + len(runs[0])
        device = runs[0].device
        counted = torch.tensor(text.learn[start + 1 : stop + 1], device=device)
        token = torch.tensor(text.ids[start + 1 : stop + 1], device=device)[counted, None]
        start = stop
        if not len(token):
            continue
        theirs = runs[0][counted].log_softmax(-1)
        for total, place in zip(sums, places, strict=True):
            mine = runs[place].to(device)[counted].log_softmax(-1)
            total[LOSS] -= mine.gather(1, token).double().sum().cpu()
            total[REFERENCE_LOSS] -= theirs.gather(1, token).double().sum().cpu()
            total[DIVERGENCE] += (theirs.exp() * (theirs - mine)).sum(-1).double().sum().cpu()
            total[AGREED] += (theirs.argmax(-1) == mine.argmax(-1)).sum().cpu()
            total[TOKENS] += len(token)
    return sums


def _comparison(sums: Tensor, topics: Tensor) -> Comparison:
    """`sums` [texts, 5], `topics` [texts]"""
    texts, different = len(sums), int(topics.max()) + 1
    sums = sums.new_zeros(different, 5).index_add(0, topics, sums)
    totals = torch.cat([sums.sum(0, keepdim=True), resampled_totals(sums)])  # the measured ones come first
    count = int(totals[0, TOKENS])
    # A draw of texts without a token that counts says nothing.
    totals = totals[totals[:, TOKENS] > 0]
    means = totals / totals[:, TOKENS, None]

    def estimate(values: Tensor) -> Estimate:
        return interval(float(values[0]), values[1:], count)

    return Comparison(
        perplexity=estimate(means[:, LOSS].exp()),
        reference_perplexity=estimate(means[:, REFERENCE_LOSS].exp()),
        perplexity_change=estimate((means[:, LOSS] - means[:, REFERENCE_LOSS]).expm1()),
        kl=estimate(means[:, DIVERGENCE]),
        agreement=estimate(means[:, AGREED]),
        topics=different if different < texts else None,
    )


def _check(candidates: Sequence[Scorer], reference: Scorer, texts: Sequence[Tokens]) -> None:
    for candidate in candidates:
        if candidate.vocab_size != reference.vocab_size:
            raise CompressError(
                f"{candidate.name} has a vocabulary of {candidate.vocab_size} tokens and {reference.name} one of "
                f"{reference.vocab_size}; only models of one vocabulary can be compared token by token."
            )
    counted = sum(any(text.learn[1:]) for text in texts)
    if counted < LEAST_TEXTS:
        raise CompressError(
            f"{counted} of the {len(texts)} texts have tokens to measure by; "
            f"give at least {LEAST_TEXTS}, and hundreds for narrow intervals."
        )
    for number, text in enumerate(texts, 1):
        for scorer in (reference, *candidates):
            if len(text.ids) - 1 > scorer.max_tokens:
                raise CompressError(
                    f"Text {number} has {len(text.ids)} tokens, and {scorer.name} takes {scorer.max_tokens}; "
                    "cut the texts to what every model takes."
                )
        if max(text.ids, default=0) >= reference.vocab_size:
            raise CompressError(
                f"Text {number} has the token id {max(text.ids)}, and the models' vocabulary ends at "
                f"{reference.vocab_size - 1}; the texts were read with another tokenizer."
            )


def _check_numbers(logits: Tensor, scorer: Scorer, number: int) -> None:
    if not bool(logits.isfinite().all()):
        raise CompressError(
            f"{scorer.name} gives logits that are not numbers (NaN or infinite) in text {number + 1}; "
            "its weights are broken, or its numbers overflow in this dtype (try float32)."
        )
