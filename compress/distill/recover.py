"""What a model lost by being cut, won back from the model it was cut from."""

from collections.abc import Sequence
from typing import Any

from ..folder import WorkFolder
from ..texts import Tokens
from ..training.batches import Batches
from ..training.loop import TrainingReport, TrainingSettings, train
from ..training.schedule import Budget
from .objective import Distillation, DistillSettings


def recover(
    student: Any,
    teacher: Any,
    texts: Sequence[Tokens],
    held_out: Sequence[Tokens],
    *,
    work: WorkFolder,
    steps: int | None = None,
    minutes: float | None = None,
    loss: DistillSettings = DistillSettings(),  # noqa: B008  # frozen
    batch_tokens: int = 4096,
    learning_rate: float = 2e-4,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> TrainingReport:
    """Distils `teacher` into `student`, in place, for `steps` or `minutes`.

    Args:
        student, teacher: transformers causal language models of one vocabulary, on one device, without a weight in
            common. The student becomes float32.
        texts, held_out: at least one text each; what is learnt goes by their `learn`.
        work: keeps checkpoint.pt and training.jsonl; a run that was interrupted goes on from there.

    Raises CompressError as `train` does.
    """
    theirs = {id(weight) for weight in teacher.parameters()}
    assert not any(id(weight) in theirs for weight in student.parameters()), "a teacher does not learn"
    settings = TrainingSettings(
        Budget(steps, minutes),
        batch_tokens,
        learning_rate,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    objective = Distillation(teacher, student.config.get_text_config().hidden_size, loss)
    source = Batches(texts, batch_tokens, seed)
    return train(student, source, held_out, objective, settings, work.path, label="recovery")
