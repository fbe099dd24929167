"""The texts that a model is cut or rounded by, and judged by: a user's, or where there are none, what it writes itself."""

from collections.abc import Callable, Sequence

from .distill.dataset import Dataset, make_dataset
from .plain_model import PlainModel
from .synthetic import synthetic_texts
from .texts import Example, Tokens

Progress = Callable[[str, int, int], None]


def dataset_of(
    model: PlainModel,
    examples: Sequence[Example] | None,
    *,
    max_tokens: int,
    held_out_share: float,
    synthetic: tuple[int, int],
    progress: Progress,
) -> Dataset:
    """Args:
    max_tokens: of each text.
    synthetic: how many texts it writes where `examples` is None, and of how many tokens at most.

    Raises CompressError where there are too few.
    """
    context = getattr(model.module.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    max_tokens = min(max_tokens, context)
    if examples is not None:
        return make_dataset(model.tokenizer, examples, max_tokens=max_tokens, held_out_share=held_out_share)
    count, tokens = synthetic
    progress("write texts", 0, 1)
    texts = synthetic_texts(model, count, tokens=min(max_tokens, tokens))
    progress("write texts", 1, 1)
    texts = list({tuple(text.ids): text for text in texts if any(text.learn[1:])}.values())
    held_out = int(held_out_share * len(texts))
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
