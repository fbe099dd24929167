"""Which keys sparse attention keeps, as the formulas say, in float64; for tests and for judging estimators.

Keys are kept or dropped by granules of 16 tokens, for each KV head alone. An estimator gives the logarithm of the attention
mass of every granule; granules are taken, the one with the largest share of any head of the group first, until every head of
the group has kept `mass` of its estimated attention. The first granule (where attention rests when it looks for nothing) and
the last 128 tokens are always kept.
"""

import torch
from torch import Tensor

GRANULE = 16
RECENT_TOKENS = 128


def exact_log_mass(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """log sum exp of the scores in each granule: query [Hq, D], keys [Hkv, n, D] -> [Hkv, G, ceil(n / 16)]."""
    return _per_granule(_scores(query, keys, scaling))


def int8_log_mass(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """As if computed from INT8 keys and queries: one scale per token and head, absmax / 127."""
    return _per_granule(_scores(_rounded(query.double()), _rounded(keys.double()), scaling))


def min_max_log_mass(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """An upper bound from the smallest and largest key of a granule per channel (Quest, Tang et al. 2024)."""
    low, high, counts = _extremes(keys)
    q = _grouped(query, keys.shape[0]) * scaling
    bound = q.clamp(min=0) @ high.transpose(1, 2) + q.clamp(max=0) @ low.transpose(1, 2)
    return bound + counts.log()


def mean_std_log_mass(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """E[exp(q k)] of normal keys with a granule's mean and variance per channel: q mean + q^2 variance / 2."""
    q = _grouped(query, keys.shape[0]) * scaling
    parts = _granules(keys)
    mean = torch.stack([part.mean(dim=1) for part in parts], dim=1)
    variance = torch.stack([part.var(dim=1, unbiased=False) for part in parts], dim=1)
    counts = torch.tensor([part.shape[1] for part in parts]).double()
    return q @ mean.transpose(1, 2) + 0.5 * (q * q) @ variance.transpose(1, 2) + counts.log()


ESTIMATORS = {"int8": int8_log_mass, "min_max": min_max_log_mass, "mean_std": mean_std_log_mass}


def select(log_mass: Tensor, mass: float, num_keys: int) -> Tensor:
    """[Hkv, G, N] log masses -> [Hkv, N] bool, the granules kept of `num_keys` keys."""
    shares = log_mass.softmax(dim=-1)
    first_recent = max(0, num_keys - RECENT_TOKENS) // GRANULE
    kept = torch.zeros(shares.shape[0], shares.shape[2], dtype=torch.bool)
    kept[:, 0] = kept[:, first_recent:] = True
    for head in range(shares.shape[0]):
        order = shares[head].amax(dim=0).sort(descending=True, stable=True).indices.tolist()
        for granule in order:
            if (shares[head][:, kept[head]].sum(dim=-1) >= mass).all():
                break
            kept[head, granule] = True
    return kept


def true_mass(query: Tensor, keys: Tensor, scaling: float, kept: Tensor) -> Tensor:
    """The attention mass of the kept granules [Hkv, N], per head: [Hkv, G]."""
    shares = exact_log_mass(query, keys, scaling).softmax(dim=-1)
    return (shares * kept[:, None]).sum(dim=-1)


def dropped_mass_bound(query: Tensor, keys: Tensor, scaling: float, kept: Tensor) -> Tensor:
    """At most this much mass was dropped, by what (min, max) summaries can tell: [Hkv, G].

    With B = sum over dropped granules of n_g exp(U_g - LSE of the kept): B / (1 + B). The output errs by at most twice this
    times the longest value.
    """
    lse = exact_log_mass(query, keys, scaling).masked_fill(~kept[:, None], float("-inf")).logsumexp(dim=-1)
    bound = min_max_log_mass(query, keys, scaling).masked_fill(kept[:, None], float("-inf"))
    return (bound.logsumexp(dim=-1) - lse).sigmoid()


def sparse_attention_reference(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, kept: Tensor
) -> Tensor:
    """Attention over the kept granules alone: query [Hq, D], keys and values [Hkv, n, D] -> [Hq, D]."""
    scores = _scores(query, keys, scaling)
    tokens = kept.repeat_interleave(GRANULE, dim=1)[:, None, : keys.shape[1]]
    weights = scores.masked_fill(~tokens, float("-inf")).softmax(dim=-1)
    return (weights @ values.double()).flatten(0, 1)


def _grouped(query: Tensor, num_kv_heads: int) -> Tensor:
    return query.double().view(num_kv_heads, -1, query.shape[-1])


def _scores(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    return _grouped(query, keys.shape[0]) @ keys.double().transpose(1, 2) * scaling


def _per_granule(scores: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(scores, (0, -scores.shape[-1] % GRANULE), value=float("-inf"))
    return padded.view(*scores.shape[:-1], -1, GRANULE).logsumexp(dim=-1)


def _rounded(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127
    return (x / scale).round() * scale


def _granules(keys: Tensor) -> list[Tensor]:
    return [keys[:, start : start + GRANULE].double() for start in range(0, keys.shape[1], GRANULE)]


def _extremes(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = _granules(keys)
    low = torch.stack([part.amin(dim=1) for part in parts], dim=1)
    high = torch.stack([part.amax(dim=1) for part in parts], dim=1)
    return low, high, torch.tensor([part.shape[1] for part in parts]).double()
