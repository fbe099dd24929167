"""The texts that a model is pruned by, recovered with and judged by: the last never among the first."""

from collections.abc import Sequence

from ..distill.dataset import Dataset, make_dataset
from ..plain_model import PlainModel
from ..synthetic import synthetic_texts
from ..texts import Example, Tokens
from .job import Progress, PruneJob

HELD_OUT_SHARE = 0.1
# Written by the model itself, where no texts are given: so many, of so many tokens at most.
SYNTHETIC_TEXTS, SYNTHETIC_TOKENS = 1024, 256
# Importance settles with far fewer tokens than it takes to recover.
CALIBRATION_TOKENS = 65_536
SELECTION_TOKENS = 4_096


def dataset_of(
    job: PruneJob, model: PlainModel, examples: Sequence[Example] | None, progress: Progress
) -> Dataset:
    """Raises CompressError where there are too few."""
    context = getattr(model.module.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    max_tokens = min(job.max_tokens, context)
    if examples is not None:
        return make_dataset(model.tokenizer, examples, max_tokens=max_tokens, held_out_share=HELD_OUT_SHARE)
    progress("write texts", 0, 1)
    texts = synthetic_texts(model, SYNTHETIC_TEXTS, tokens=min(max_tokens, SYNTHETIC_TOKENS))
    progress("write texts", 1, 1)
    texts = list({tuple(text.ids): text for text in texts if any(text.learn[1:])}.values())
    held_out = int(HELD_OUT_SHARE * len(texts))
    return Dataset(texts[held_out:], texts[:held_out], len(texts), 0, 0)


def up_to(texts: Sequence[Tokens], tokens: int) -> list[Tokens]:
    """The first of them, one at least, of so many tokens together."""
    found: list[Tokens] = []
    count = 0
    for text in texts:
        if found and count + len(text.ids) > tokens:
            break
        found.append(text)
        count += len(text.ids)
    return found
