"""The rows of one sequence in a step's flat batch: what every implementation of attention starts from."""

from dataclasses import dataclass

# The block that belongs to no sequence; tables are padded with it.
NULL_BLOCK = 0
# Tokens in a block of the GPU's layout.
PAGE_SIZE = 64
# Positions of a sparse prompt that choose the keys they attend to together: those from a multiple of it to the next.
PROMPT_BLOCK = 64


@dataclass(slots=True)
class Span:
    """Consecutive positions of one sequence, next to each other in the flat batch.

    Attributes:
        block_table: the sequence's KV blocks in order, enough for all its positions up to the span's last.
        first_position: of the span's first token.
        num_tokens: 1 when decoding.
        sparse_mass: attend only to the keys that hold this share of the attention; None attends to all.
        is_prompt: of a span with a `sparse_mass`, whether its rows choose their keys by whole PROMPT_BLOCKs; it then begins
            at a multiple of one, and ends at one or at the sequence's end.
    """

    block_table: list[int]
    first_position: int
    num_tokens: int
    sparse_mass: float | None = None
    is_prompt: bool = False

    @property
    def context_len(self) -> int:
        """Tokens whose KV is stored when the step is over."""
        return self.first_position + self.num_tokens

    @property
    def is_sparse_prompt(self) -> bool:
        return self.is_prompt and self.sparse_mass is not None

    @property
    def is_decode(self) -> bool:
        """Whether it is laid out as one row among others; the last token of a sparse prompt is not, even alone."""
        return self.num_tokens == 1 and not self.is_sparse_prompt


def prompt_blocks(span: Span) -> list[tuple[int, int]]:
    """Of a sparse prompt's span: its blocks' numbers in the sequence and rows, in order."""
    assert span.first_position % PROMPT_BLOCK == 0, "a block of a sparse prompt is cut"
    return [
        (start // PROMPT_BLOCK, min(PROMPT_BLOCK, span.context_len - start))
        for start in range(span.first_position, span.context_len, PROMPT_BLOCK)
    ]
