"""What a student is worth beside its teacher, read back from the folder it was written to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..evaluate import Comparison, PlainScorer, Scorer, compare
from ..plain_model import PlainModel, load_plain
from ..texts import Tokens
from .acceptance import Acceptance, acceptance
from .vocabulary import size_of


@dataclass(frozen=True, slots=True)
class Measured:
    comparison: Comparison
    acceptance: Acceptance
    texts: int


def measure(folder: Path, teacher: PlainModel, texts: Sequence[Tokens], device: str) -> Measured:
    """The model in `folder` beside `teacher`, on at least two texts."""
    student = load_plain(str(folder), device=device)
    vocab = size_of(teacher.tokenizer)
    comparison = compare(
        Narrowed(PlainScorer(student.module, "student"), vocab),
        Narrowed(PlainScorer(teacher.module, "teacher"), vocab),
        texts,
    )
    return Measured(comparison, acceptance(student.module, teacher.module, texts), len(texts))


class Narrowed:
    """A Scorer without the rows that pad a vocabulary: student and teacher may be padded to different sizes."""

    def __init__(self, scorer: Scorer, vocab_size: int) -> None:
        self.name, self.max_tokens = scorer.name, scorer.max_tokens
        self.vocab_size = vocab_size
        self._scorer = scorer

    def logits(self, ids: list[int], rows: int) -> Iterator[Tensor]:
        for run in self._scorer.logits(ids, rows):
            yield run[:, : self.vocab_size]
