"""A BERT encoder by torch's operators: every precision, on any machine, and what the C library is tried against."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .encoder_weights import EncoderWeights


class TorchEncoder:
    """From token ids to unit vectors, texts in one flat row of tokens."""

    revision = "encoder-1"

    def __init__(self, weights: EncoderWeights) -> None:
        self._weights = weights

    @torch.inference_mode()
    def __call__(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """One text at least, each of one token at least -> [n, H] float32 of length 1."""
        own = self._weights
        lengths = [len(ids) for ids in token_ids]
        flat = torch.tensor([token_id for ids in token_ids for token_id in ids])  # [T]
        positions = torch.cat([own.positions[:length] for length in lengths])
        x = own.norm(F.embedding(flat, own.words).add_(positions))  # [T, H]
        for layer in own.layers:
            attended = self._attend(layer.qkv(x), lengths)
            x = layer.attention_norm(layer.out(attended).add_(x))
            x = layer.norm(layer.down(F.gelu(layer.up(x))).add_(x))
        pooled = torch.stack([own.pooling(text) for text in torch.split(x, lengths)])
        return F.normalize(pooled, dim=-1)

    def _attend(self, qkv: Tensor, lengths: list[int]) -> Tensor:
        """[T, 3 * H] -> [T, H], each text by itself."""
        heads = self._weights.heads
        out = torch.empty(qkv.shape[0], qkv.shape[1] // 3)
        for rows, place in zip(torch.split(qkv, lengths), torch.split(out, lengths), strict=True):
            query, key, value = rows.view(1, rows.shape[0], 3, heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value)  # [1, heads, n, dim]
            place.view(1, rows.shape[0], heads, -1).copy_(attended.transpose(1, 2))
        return out
