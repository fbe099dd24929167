"""A step being put together: who computes how many tokens, and what is left of its budget."""

from dataclasses import dataclass, field

from .sequence import Sequence


@dataclass(slots=True)
class Step:
    """`budget` tokens may still be added to those `chosen`, drafts included."""

    budget: int
    chosen: dict[Sequence, int] = field(default_factory=dict)
    preempted: bool = False

    @property
    def num_tokens(self) -> int:
        """With the drafts so far."""
        return sum(num_new + len(seq.draft) for seq, num_new in self.chosen.items())

    def choose(self, seq: Sequence, num_new: int) -> None:
        self.chosen[seq] = num_new
        self.budget -= num_new

    def take_back(self, seq: Sequence) -> None:
        self.budget += self.chosen.pop(seq, 0)

    def draft_room(self, seq: Sequence) -> int:
        """The longest draft that it could verify for a sequence; 0 for none."""
        num_new = self.chosen[seq]
        if seq.speculation is None or seq.is_ahead or num_new != seq.num_uncomputed_tokens:
            return 0
        if seq.speculation.after_prompt and (num_new > 1 or not seq.num_output_tokens):
            return 0
        # The step itself gives one token; what is drafted beyond the last could never be used.
        return max(0, min(self.budget + len(seq.draft), seq.max_tokens - seq.num_output_tokens - 1))
