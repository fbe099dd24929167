"""Texts that a model writes by itself, for calibrating it where nothing better is at hand.

Sampled at temperature 1, as in LLM-QAT (Liu et al. 2023): what a model writes shows its activations as they usually are.
"""

import torch

from .plain_model import PlainModel
from .texts import Tokens


@torch.no_grad()
def synthetic_texts(
    model: PlainModel, count: int, *, tokens: int, seed: int = 0, batch: int = 16
) -> list[Tokens]:
    """`count` texts of at most `tokens` ids, each begun with a token of the vocabulary drawn at random.

    They end where the model ends them. The same seed gives the same texts.
    """
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(model.module.config.get_text_config().vocab_size, (count,), generator=draw)
    bos = model.tokenizer.bos_token_id
    ends = _ends(model.module.generation_config.eos_token_id)
    texts = []
    with torch.random.fork_rng(devices=[model.module.device] if model.module.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, count, batch):
            prompts = first[start : start + batch, None]  # [B, 1]
            if bos is not None:
                prompts = torch.cat([torch.full_like(prompts, bos), prompts], dim=1)
            written = model.module.generate(
                prompts.to(model.module.device),
                attention_mask=torch.ones_like(prompts, device=model.module.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max(1, tokens - prompts.shape[1]),
                pad_token_id=min(ends, default=0),  # what follows the end is cut off
            )
            for row in written.tolist():
                begun = prompts.shape[1]
                end = next((i for i in range(begun, len(row)) if row[i] in ends), len(row))
                ids = row[: end + 1]
                texts.append(Tokens(ids, [True] * len(ids)))
    return texts


def _ends(eos: int | list[int] | None) -> set[int]:
    if eos is None:
        return set()
    return set(eos) if isinstance(eos, list) else {eos}
