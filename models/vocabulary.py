"""Whether two models mean the same by the same token ids, as one that guesses the other's tokens must."""

from pathlib import Path

from ..errors import ModelLoadError
from .tokenizer import Tokenizer


def refuse_other_vocabulary(draft: Path, target: Path) -> None:
    """Raises ModelLoadError when the folders' tokenizers give an id another token."""
    if difference := vocabulary_difference(draft, target):
        raise ModelLoadError(
            f"draft_model {draft.name} has another vocabulary than {target.name}: {difference}. "
            "Give a draft model made with the same tokenizer, or leave draft_model out.",
            param="draft_model",
        )


def vocabulary_difference(one: Path, other: Path) -> str | None:
    """What differs between the folders' tokens, special and added ones included, with one of them by name; None for nothing.

    Which of them end a text, and how many more ids the weights are padded to, may differ.
    """
    files = [folder / "tokenizer.json" for folder in (one, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return None
    return token_difference(*(Tokenizer.load(str(folder)) for folder in (one, other)))


def token_difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """Likewise, of tokenizers that are loaded already."""
    ours, theirs = one.vocabulary(), other.vocabulary()
    if ours == theirs:
        return None
    example = min(ours.items() ^ theirs.items(), key=lambda entry: entry[::-1])[0]
    return (
        f"{len(ours)} and {len(theirs)} tokens, "
        f"{example!r} is {_named(ours.get(example))} in the one and {_named(theirs.get(example))} in the other"
    )


def _named(token_id: int | None) -> str:
    return "unknown" if token_id is None else f"id {token_id}"
