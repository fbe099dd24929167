"""Whether two models mean the same by a token id: what they must, for one to learn from the other's distributions."""

from typing import Any

from ...errors import CompressError
from ...models.tokenizer import Tokenizer
from ...models.vocabulary import token_difference


def check_same_vocabulary(teacher: Tokenizer, student: Tokenizer) -> None:
    """Token by token, not only in size. Raises CompressError naming the first that differs."""
    if difference := token_difference(student, teacher):
        raise CompressError(
            f"The student has another vocabulary than the teacher: {difference}. A student learns the teacher's "
            "probabilities token by token; take one with the teacher's tokenizer, or make one with --layers.",
            param="student",
        )


def size_of(tokenizer: Tokenizer) -> int:
    """Rows that a model's matrices need for all of its ids."""
    return max(tokenizer.vocabulary().values()) + 1


def check_rows(module: Any, tokenizer: Tokenizer, name: str) -> None:
    """Whether a model has a row for every token; more are padding. Raises CompressError."""
    rows, needed = module.get_output_embeddings().weight.shape[0], size_of(tokenizer)
    if rows < needed:
        raise CompressError(
            f"{name} has a vocab_size of {rows}, and the teacher's tokenizer {needed} tokens; it must have at least as many."
        )
