"""From logits to the next tokens. A token depends only on its own sequence: never on the row, the batch or the step.

Sampling is Gumbel-max: argmax of logits / temperature + noise, where the noise of a token is a pure function of
(seed, position, token id). That draws exactly from the softmax, is reproducible, and lets a drafted token be accepted
whenever it equals the token that would have been drawn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .outputs import TokenLogprob
from .sequence import Sequence

# Constants of the splitmix64 mixing function (Steele, Lea and Flood 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_MASK = (1 << 64) - 1
# Below this, differences between float32 logits are beyond the reach of the noise already, and dividing would overflow.
MIN_TEMPERATURE = 1e-10
# Above this all tokens are equally likely already, and what float32 holds as infinity would make NaN of a forbidden token.
MAX_TEMPERATURE = 1e10


@dataclass(slots=True)
class SampledToken:
    token_id: int
    logprob: TokenLogprob | None = None


@torch.inference_mode()
def sample(logits: Tensor, seqs: list[Sequence], eos_token_ids: list[int]) -> list[SampledToken | None]:
    """Choose the next token of each sequence.

    Args:
        logits: [S, V]; changed in place.
        seqs: the S sequences; their token lists end just before the position sampled.
        eos_token_ids: forbidden while a sequence is below its min_tokens.

    Returns:
        One token per row, or None where the row has no finite logit (a broken model or weights).
    """
    logits = logits.float()
    logprobs = _log_softmax_where_asked(logits, seqs)
    for row, seq in enumerate(seqs):
        _adjust(logits[row], seq, eos_token_ids)
    random_rows = [row for row, seq in enumerate(seqs) if not seq.params.is_greedy]
    for row in random_rows:
        _prepare_random(logits[row], seqs[row])
    best, token_ids = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    return [
        SampledToken(token_id, _logprob(logprobs.get(row), token_id, seqs[row])) if finite[row] else None
        for row, token_id in enumerate(token_ids.tolist())
    ]


def gumbel_noise(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, a pure function of its arguments; token_ids [N] int64 -> [N]."""
    key = _mix_int(_mix_int(seed & _MASK) ^ position)
    state = token_ids * _GOLDEN + _signed(key)
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    state = state ^ _shift_right(state, 31)
    # 23 random bits, centred in their interval: exact in float32's 24, so strictly inside (0, 1) and both logarithms
    # finite. (With 24 bits the largest rounds to 1: infinite noise, once in 16 million tokens.)
    uniform = (_shift_right(state, 41).float() + 0.5) * 2.0**-23
    return uniform.log_().neg_().log_().neg_()


def _adjust(row: Tensor, seq: Sequence, eos_token_ids: list[int]) -> None:
    """Penalties, bias and minimum length, in the order of OpenAI's and vLLM's definitions; [V] in place."""
    params = seq.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(seq.token_ids)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    if (params.presence_penalty or params.frequency_penalty) and seq.num_output_tokens:
        output = torch.tensor(seq.token_ids[seq.num_prompt_tokens :], device=row.device)
        tokens, counts = torch.unique(output, return_counts=True)
        row[tokens] -= params.presence_penalty + params.frequency_penalty * counts.float()
    if params.logit_bias:
        tokens = torch.tensor(list(params.logit_bias), device=row.device)
        row[tokens] += torch.tensor(list(params.logit_bias.values()), device=row.device)
    if seq.num_output_tokens < params.min_tokens:
        forbidden = [*eos_token_ids, *params.stop_token_ids]
        if forbidden:
            row[torch.tensor(forbidden, device=row.device)] = float("-inf")


def _prepare_random(row: Tensor, seq: Sequence) -> None:
    """Temperature, filters and noise, so that the argmax is the draw; [V] in place."""
    params = seq.params
    row.div_(min(max(params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE))
    kept: Tensor | None = None  # token ids that may be drawn, None for all
    if 0 < params.top_k < row.shape[0]:
        kept = row.topk(params.top_k).indices
    if params.top_p < 1.0:
        values, order = (row if kept is None else row[kept]).sort(descending=True, stable=True)
        probabilities = values.softmax(dim=0)
        # A token stays while the mass before it is below p: the smallest set that reaches p, never empty.
        stays = probabilities.cumsum(0) - probabilities < params.top_p
        stays[0] = True  # also for a p that float32 rounds to 0
        kept = (order if kept is None else kept[order])[stays]
    if params.min_p > 0.0:
        values = row if kept is None else row[kept]
        stays = values >= values.max() + torch.log(torch.tensor(params.min_p))
        kept = stays.nonzero().flatten() if kept is None else kept[stays]
    if kept is None:
        row.add_(gumbel_noise(seq.seed, seq.num_tokens, torch.arange(row.shape[0], device=row.device)))
        return
    drawn = row[kept] + gumbel_noise(seq.seed, seq.num_tokens, kept)
    row.fill_(float("-inf"))
    row[kept] = drawn


def _log_softmax_where_asked(logits: Tensor, seqs: list[Sequence]) -> dict[int, Tensor]:
    rows = [row for row, seq in enumerate(seqs) if seq.params.logprobs is not None]
    return {row: torch.log_softmax(logits[row], dim=0) for row in rows}


def _logprob(row: Tensor | None, token_id: int, seq: Sequence) -> TokenLogprob | None:
    if row is None:
        return None
    values, ids = row.topk(min(seq.params.logprobs or 0, row.shape[0]))
    top = list(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id, float(row[token_id]), top)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 (torch shifts arithmetically)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix_int(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
