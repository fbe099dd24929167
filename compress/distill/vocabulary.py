"""Whether two models mean the same by a token id: what they must, for one to learn from the other's distributions."""

from ...errors import CompressError
from ...models.tokenizer import Tokenizer


def check_same_vocabulary(teacher: Tokenizer, student: Tokenizer) -> None:
    """Token by token, not only in size. Raises CompressError naming the first that differs."""
    theirs, own = teacher.vocabulary(), student.vocabulary()
    if theirs == own:
        return
    by_id = sorted((token_id, token) for token, token_id in theirs.items() if own.get(token) != token_id)
    if not by_id:
        token, token_id = min(
            ((token, token_id) for token, token_id in own.items() if token not in theirs), key=lambda p: p[1]
        )
        differs = f"{token!r} is token {token_id} of the student and none of the teacher"
    else:
        token_id, token = by_id[0]
        place = f"token {own[token]}" if token in own else "none"
        differs = f"{token!r} is token {token_id} of the teacher and {place} of the student"
    raise CompressError(
        f"The student has another vocabulary ({len(own)} tokens, the teacher {len(theirs)}): {differs}. A student learns "
        "the teacher's probabilities token by token; take one with the teacher's tokenizer, or make one with --layers.",
        param="student",
    )
