"""The training loss, and the same loss on pages that are never trained on."""

from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from .batches import IGNORE, Batch, group, tokenize
from .chat import Conversation, Pair
from .corpus import Corpus, Row, answer_for

BATCH_TOKENS = 4096


def loss_of(backbone: Any, embedding: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
    """Mean loss over the tokens to be learnt, and their number; logits only for those: [N, V]."""
    wanted = batch.labels.flatten() != IGNORE
    hidden = backbone(batch.ids, use_cache=False).last_hidden_state.flatten(0, 1)[wanted]  # [N, D]
    logits = functional.linear(hidden, embedding.to(hidden.dtype))
    return functional.cross_entropy(logits.float(), batch.labels.flatten()[wanted]), int(wanted.sum())


def held_out_loss(model: Any, tokenizer: Tokenizer, corpus: Corpus, rows: list[Row]) -> float:
    """Mean loss per answer token on `rows`, asked by their plain descriptions with the tool's name."""
    talks = []
    for row in rows:
        question = f"how do I {row.description[0].lower()}{row.description[1:]} with {row.tool}?"
        talks.append(Conversation((Pair(question, answer_for(row, corpus.verbs)),)))
    total, count = 0.0, 0
    for padded in group(tokenize(tokenizer, talks), BATCH_TOKENS):
        batch = padded.to(model.device)
        with torch.no_grad():
            loss, n = loss_of(model.model, model.model.embed_tokens.weight, batch)
        total, count = total + loss.item() * n, count + n
    return total / count
