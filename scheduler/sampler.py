"""From logits to the next tokens. A token depends only on its own sequence: never on the row, the batch or the step.

Penalties, biases and log-probabilities here; the draw itself is a kernel (`kernels/cpu/sample.py` defines it).
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType

import torch
from torch import Tensor

from ..kernels.draw import Draw
from ..kernels.transfer import Download
from .outputs import TokenLogprob
from .sequence import Sequence

# Below this, differences between float32 logits are beyond the reach of the noise already, and dividing would overflow.
MIN_TEMPERATURE = 1e-10
# Above this all tokens are equally likely already, and what float32 holds as infinity would make NaN of a forbidden token.
MAX_TEMPERATURE = 1e10


@dataclass(frozen=True, slots=True)
class Place:
    """What a row's logits say the next token of: the sequence's tokens and the first `num_drafted` of its draft."""

    seq: Sequence
    num_drafted: int = 0

    @property
    def num_tokens(self) -> int:
        return self.seq.num_tokens + self.num_drafted

    @property
    def num_output_tokens(self) -> int:
        return self.seq.num_output_tokens + self.num_drafted

    @property
    def token_ids(self) -> list[int]:
        return self.seq.token_ids + self.seq.draft[: self.num_drafted]


@dataclass(slots=True)
class SampledToken:
    token_id: int
    logprob: TokenLogprob | None = None
    hidden_state: bytes | None = None


# Looks at nothing but the logits; drafts make hundreds of rows of a step, which need no draw of their own.
GREEDY = Draw(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, position=0)
Sampler = Callable[[Tensor, Rows[Draw]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The next token at each of S places, while the device may still be drawing it.

    Attributes:
        token_ids: [S] int64, on the device.
        logprobs: [V], by place, where they are asked for.
        states: final hidden states [H], by place, where they are asked for.
    """

    token_ids: Tensor
    logprobs: dict[int, Tensor]
    states: Mapping[int, Tensor]
    _places: list[Place]
    _told: Download

    def tokens(self) -> list[SampledToken | None]:
        """Waits for the device. None where a place has no finite logit (a broken model or weights)."""
        token_ids, is_finite = (each.tolist() for each in self._told.wait())
        return [
            SampledToken(
                token_id,
                _logprob(self.logprobs.get(row), token_id, self._places[row].seq),
                _bytes_of(self.states.get(row)),
            )
            if is_finite[row]
            else None
            for row, token_id in enumerate(token_ids)
        ]


def draws_of(places: Rows[Place]) -> list[Draw]:
    """How the token at each place is drawn, as of now."""
    return [_draw(place) for place in places]


@torch.inference_mode()
def draw(
    logits: Tensor,
    places: list[Place],
    draws: Rows[Draw],
    eos_token_ids: list[int],
    sampler: Sampler,
    *,
    states: Mapping[int, Tensor] = MappingProxyType({}),
    with_logprobs: bool = True,
) -> Drawn:
    """Choose the next token at each place.

    Args:
        logits: [S, V]; changed in place.
        places: the S places whose next token they tell; any of a sequence's, each behind the one before.
        draws: of the places. Nothing else is looked at of a sequence without `needs_tokens`.
        eos_token_ids: forbidden while a sequence is below its min_tokens.
        sampler: the kernel that draws.
        states: to be told with the tokens, by place.
        with_logprobs: for the sequences that ask for them.
    """
    logits = logits.float()
    logprobs = _log_softmax_where_asked(logits, places) if with_logprobs else {}
    for row, place in enumerate(places):
        if place.seq.params.changes_logits:
            _adjust(logits[row], place, eos_token_ids)
    _forbid_what_no_grammar_takes(logits, places)
    token_ids, best = sampler(logits, draws)
    return Drawn(token_ids, logprobs, states, places, Download(token_ids, torch.isfinite(best)))


def needs_tokens(seq: Sequence) -> bool:
    """Whether sampling looks at the tokens before, or more is asked of it than a token."""
    return seq.params.changes_logits or seq.matcher is not None or seq.params.logprobs is not None


def sample(
    logits: Tensor, places: list[Place], eos_token_ids: list[int], sampler: Sampler
) -> list[SampledToken | None]:
    """`draw`, and its tokens."""
    return draw(logits, places, draws_of(places), eos_token_ids, sampler).tokens()


def _adjust(row: Tensor, place: Place, eos_token_ids: list[int]) -> None:
    """Penalties, bias and minimum length, in the order of OpenAI's and vLLM's definitions; [V] in place."""
    params = place.seq.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(place.token_ids)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    if (params.presence_penalty or params.frequency_penalty) and place.num_output_tokens:
        output = torch.tensor(place.token_ids[place.seq.num_prompt_tokens :], device=row.device)
        tokens, counts = torch.unique(output, return_counts=True)
        row[tokens] -= params.presence_penalty + params.frequency_penalty * counts.float()
    if params.logit_bias:
        tokens = torch.tensor(list(params.logit_bias), device=row.device)
        row[tokens] += torch.tensor(list(params.logit_bias.values()), device=row.device)
    if place.num_output_tokens < params.min_tokens:
        forbidden = [*eos_token_ids, *params.stop_token_ids]
        if forbidden:
            row[torch.tensor(forbidden, device=row.device)] = float("-inf")


def _forbid_what_no_grammar_takes(logits: Tensor, places: list[Place]) -> None:
    # The places of one sequence stand beside each other: its matcher goes through them once.
    for seq, group in groupby(enumerate(places), key=lambda numbered: numbered[1].seq):
        if seq.matcher is None:
            continue
        rows = list(group)
        first, last = rows[0][1].num_drafted, rows[-1][1].num_drafted
        masks = torch.stack(seq.matcher.masks(seq.draft[:last])[first:]).to(logits.device)
        start = rows[0][0]
        logits[start : start + len(rows)].masked_fill_(~masks, float("-inf"))


def _draw(place: Place) -> Draw:
    params = place.seq.params
    if params.is_greedy:
        return GREEDY
    temperature = min(max(params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)
    return Draw(temperature, params.top_k, params.top_p, params.min_p, place.seq.seed, place.num_tokens)


def _log_softmax_where_asked(logits: Tensor, places: list[Place]) -> dict[int, Tensor]:
    rows = [row for row, place in enumerate(places) if place.seq.params.logprobs is not None]
    return {row: torch.log_softmax(logits[row], dim=0) for row in rows}


def _logprob(row: Tensor | None, token_id: int, seq: Sequence) -> TokenLogprob | None:
    if row is None:
        return None
    values, ids = row.topk(min(seq.params.logprobs or 0, row.shape[0]))
    top = list(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id, float(row[token_id]), top)


def _bytes_of(state: Tensor | None) -> bytes | None:
    return None if state is None else state.float().cpu().numpy().tobytes()
