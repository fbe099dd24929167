"""Whether two models mean the same by the same token ids, as one that guesses the other's tokens must."""

from pathlib import Path

from ..errors import ModelLoadError
from .tokenizer import Tokenizer


def refuse_other_vocabulary(draft: Path, target: Path) -> None:
    """Raises ModelLoadError when the folders' tokenizers give an id another token, special and added ones included.

    Which of them end a text, and how many more ids the weights are padded to, may differ.
    """
    files = [folder / "tokenizer.json" for folder in (draft, target)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return
    ours, theirs = (Tokenizer.load(str(folder)).vocabulary() for folder in (draft, target))
    if ours == theirs:
        return
    example = min(ours.items() ^ theirs.items(), key=lambda entry: entry[1])[0]
    raise ModelLoadError(
        f"draft_model {draft.name} has another vocabulary than {target.name}: {len(ours)} and {len(theirs)} tokens, "
        f"{example!r} is {_named(ours.get(example))} in the one and {_named(theirs.get(example))} in the other. "
        "Give a draft model made with the same tokenizer, or leave draft_model out.",
        param="draft_model",
    )


def _named(token_id: int | None) -> str:
    return "unknown" if token_id is None else f"id {token_id}"
