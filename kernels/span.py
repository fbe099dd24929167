"""The rows of one sequence in a step's flat batch: what every implementation of attention starts from."""

from dataclasses import dataclass

# The block that belongs to no sequence; tables are padded with it.
NULL_BLOCK = 0
# Tokens in a block of the GPU's layout.
PAGE_SIZE = 64


@dataclass(slots=True)
class Span:
    """Consecutive positions of one sequence, next to each other in the flat batch.

    Attributes:
        block_table: the sequence's KV blocks in order, enough for all its positions up to the span's last.
        first_position: of the span's first token.
        num_tokens: 1 when decoding.
        sparse_mass: attend only to the keys that hold this share of the attention; None attends to all.
    """

    block_table: list[int]
    first_position: int
    num_tokens: int
    sparse_mass: float | None = None

    @property
    def context_len(self) -> int:
        """Tokens whose KV is stored when the step is over."""
        return self.first_position + self.num_tokens
