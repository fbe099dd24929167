"""What a student would be worth as its teacher's draft model: how many of the tokens it proposes would stand.

A greedy draft token stands where both models' best tokens are the same, a sampled one with probability sum(min(p, q))
(Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"). Both are taken along texts as they are,
not along what either model would write.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..evaluate.estimate import Estimate, interval, resampled_totals
from ..texts import Tokens
from ..training.batches import IGNORE, in_order
from ..training.chunked import rows_per_chunk
from ..training.halves import split
from ..training.objective import hidden_states, learnt_positions


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Attributes:
    greedy: share of positions where the best tokens are the same.
    sampled: mean of sum(min(p, q)), at temperature 1.
    """

    greedy: Estimate
    sampled: Estimate


@torch.no_grad()
def acceptance(student: Any, teacher: Any, texts: Sequence[Tokens], batch_tokens: int = 4096) -> Acceptance:
    """Of what is learnt in `texts`, of which there is at least one.

    Both are transformers causal language models, on one device and in eval mode.
    """
    models = split(student), split(teacher)
    vocab = min(len(model.head.weight) for model in models)
    tables = []
    for batch in in_order(texts, batch_tokens):
        batch = batch.to(student.device)
        wanted, labels = learnt_positions(batch)
        hidden = [hidden_states(model, batch, wanted) for model in models]
        rows = rows_per_chunk(vocab)
        found = []
        for start in range(0, len(labels), rows):
            p, q = (
                model.head(states[start : start + rows])[:, :vocab].float().softmax(-1)
                for model, states in zip(models, hidden, strict=True)
            )
            same, overlap = p.argmax(-1) == q.argmax(-1), torch.minimum(p, q).sum(-1)
            found.append(torch.stack([torch.ones_like(overlap), same, overlap], dim=1))
        text_of = (batch.labels != IGNORE).nonzero()[:, 0]
        sums = torch.zeros(len(batch.ids), 3, dtype=torch.double)
        tables.append(sums.index_add_(0, text_of.cpu(), torch.cat(found).double().cpu()))
    sums = torch.cat(tables)
    totals = torch.cat([sums.sum(0, keepdim=True), resampled_totals(sums)])
    shares = totals[:, 1:] / totals[:, :1]
    greedy, sampled = (interval(float(column[0]), column[1:], int(totals[0, 0])) for column in shares.T)
    return Acceptance(greedy, sampled)
