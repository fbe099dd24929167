"""Trains a transformers causal language model for a budget, on one device or several, and goes on where it was interrupted.

A step is a pure function of the weights, the optimizer's state and (seed, step): a run that was interrupted ends with the
same bits as one that was not, on the same machine. Knows no loss and no command.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ...errors import CompressError
from ..texts import Tokens
from .batches import Batch, in_order
from .checkpoint import load_checkpoint, save_checkpoint
from .halves import Halves, split
from .interruption import Interruption
from .log import TrainingLog
from .objective import Objective
from .optimizer import make_optimizer, set_rate
from .schedule import GAP_SECONDS, Budget, rate_at
from .team import ALONE, Team

SAVE_EVERY_SECONDS = 120.0
EVALUATIONS = 10
CLIP = 1.0


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Attributes:
    batch_tokens: most padded tokens of a step, of each process that trains.
    learning_rate: the highest.
    gradient_checkpointing: compute each layer twice, and keep only its input: a third slower, a fraction of the memory.
    bf16: matrix products in bfloat16 (autocast); weights and optimizer stay float32.
    """

    budget: Budget
    batch_tokens: int = 4096
    learning_rate: float = 1e-3
    gradient_checkpointing: bool = False
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Attributes:
    seconds: of training, without evaluations.
    held_out_before, held_out: means over the held-out texts, "loss" and the objective's parts; told to the leader alone.
    log: JSONL.
    """

    steps: int
    tokens: int
    seconds: float
    held_out_before: dict[str, float]
    held_out: dict[str, float]
    log: Path


class BatchSource(Protocol):
    """`state` is what `at` needs beside the step to give the same batch again."""

    def at(self, step: int) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def train(
    student: Any,
    source: BatchSource,
    held_out: Sequence[Tokens],
    objective: Objective,
    settings: TrainingSettings,
    work: Path,
    *,
    label: str = "training",
    team: Team = ALONE,
) -> TrainingReport:
    """Trains `student` in place, as float32, and leaves it in eval mode.

    Args:
        student: a transformers causal language model, on the device to train on.
        held_out: texts never trained on; may be empty.
        work: a folder for checkpoint.pt and training.jsonl; what is there is gone on from.
        label: stands before the live line.
        team: those that train the same student, from the same weights, each called with a `source` of its own.

    Raises CompressError where the loss is no number, or the disk is full; KeyboardInterrupt after Ctrl-C, with a checkpoint.
    """
    return _Training(student, source, held_out, objective, settings, work, label, team).run()


class _Training:
    def __init__(
        self,
        student: Any,
        source: BatchSource,
        held_out: Sequence[Tokens],
        objective: Objective,
        settings: TrainingSettings,
        work: Path,
        label: str,
        team: Team,
    ) -> None:
        self.student, self.source, self.held_out = student.float(), source, held_out
        self.objective, self.settings, self.label, self.team = objective, settings, label, team
        self.device: torch.device = student.device
        self.halves: Halves = split(student)
        self.learning = [*student.parameters(), *objective.parameters()]
        self.optimizer = make_optimizer(self.learning, settings.learning_rate)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.before: dict[str, float] | None = None
        self.checkpoint = work / "checkpoint.pt"
        self.log = TrainingLog(work / "training.jsonl")
        self.saved_at, self.saved_step = 0.0, 0

    @property
    def progress(self) -> float:
        return self.settings.budget.progress(self.step, self.seconds)

    def run(self) -> TrainingReport:
        with Interruption() as interruption:
            self.restore()
            return self.steps(interruption)

    def steps(self, interruption: Interruption) -> TrainingReport:
        from tqdm import tqdm

        if self.settings.gradient_checkpointing:
            _checkpoint_layers(self.student)
        if self.before is None:
            self.before = self.evaluate()
        latest = self.before
        done = round(100 * self.progress)
        # disable=None: no line where nobody looks at a terminal
        hidden = None if self.team.leads else True
        with tqdm(total=100, initial=done, desc=self.label, disable=hidden, bar_format=_BAR) as bar:
            while self.progress < 1.0 and not self.is_ended_by(interruption):
                began = self.progress
                told = self.one_step()
                if int(began * EVALUATIONS) != int(self.progress * EVALUATIONS) and self.progress < 1.0:
                    latest = self.evaluate()
                if self.seconds - self.saved_at > SAVE_EVERY_SECONDS:
                    self.save()
                bar.n = round(100 * self.progress)
                bar.set_postfix_str(_shown(self.step, told, latest))
        if self.step != self.saved_step:
            self.save()
        self.team.wait()  # for the leader's checkpoint: launchers end all others when one has failed
        interruption.raise_it()
        after = self.evaluate()
        interruption.raise_it()
        return TrainingReport(self.step, self.tokens, self.seconds, self.before, after, self.log.file)

    def is_ended_by(self, interruption: Interruption) -> bool:
        """Whether anyone was signalled. Here, where no clock runs, the others wait for what the leader does beside steps."""
        (number,) = self.team.largest(interruption.number or 0)
        if number:
            interruption.number = int(number)
        return bool(number)

    def one_step(self) -> dict[str, float]:
        """Raises CompressError, with the weights as they were, where loss or gradients are no numbers."""
        started = time.monotonic()
        torch.manual_seed(_seed(self.settings.seed, self.team.place.index(self.step)))
        rate = self.settings.learning_rate * rate_at(self.progress)
        set_rate(self.optimizer, rate)
        batch = self.source.at(self.step).to(self.device)
        self.student.train()
        with self.autocast():
            loss = self.objective(self.halves, batch)
        loss.value.backward()
        told = self.team.averaged(self.learning, loss, batch.ids.numel())
        size = torch.nn.utils.clip_grad_norm_(self.learning, CLIP).item()
        for what, number in (("loss", told.means["loss"]), ("gradient", size)):
            if not math.isfinite(number):
                raise self.diverged(f"The {what} is {number}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        (spent,) = self.team.largest(time.monotonic() - started)
        self.seconds += min(spent, GAP_SECONDS)
        self.step, self.tokens = self.step + 1, self.tokens + told.tokens
        speed = told.tokens / spent
        if self.team.leads:
            self.log.write(
                step=self.step,
                **_rounded(told.means),
                gradient=round(size, 4),
                rate=rate,
                tokens_per_second=round(speed),
            )
        return {**told.means, "tokens_per_second": speed}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over the held-out texts; empty without any, and for all but the leader, for whom the others wait."""
        if not self.held_out or not self.team.leads:
            return {}
        self.student.eval()
        sums: dict[str, float] = {}
        positions = 0
        for batch in in_order(self.held_out, self.settings.batch_tokens):
            with self.autocast():
                loss = self.objective(self.halves, batch.to(self.device))
            positions += loss.positions
            for name, part in {"loss": loss.value, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + part.item() * loss.positions
        means = {name: total / positions for name, total in sums.items()}
        self.log.write(step=self.step, held_out=_rounded(means))
        return means

    def diverged(self, what: str) -> CompressError:
        rate = self.settings.learning_rate
        resumes = self.checkpoint.exists()
        kept = f"to go on from the checkpoint of step {self.saved_step}" if resumes else "instead"
        return CompressError(
            f"{what} at step {self.step}, where the learning rate was {rate * rate_at(self.progress):.2g}. Run the same "
            f"command with --learning-rate {rate / 4:.2g} {kept}."
        )

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)

    def save(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.learning):
            raise self.diverged("A weight is no number any more")
        sources = self.team.gathered(self.source.state())
        self.saved_at, self.saved_step = self.seconds, self.step
        if not self.team.leads:
            return
        save_checkpoint(
            self.checkpoint,
            {
                "student": self.student.state_dict(),
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sources": sources,
                "step": self.step,
                "tokens": self.tokens,
                "seconds": self.seconds,
                "before": self.before,
            },
        )

    def restore(self) -> None:
        state = load_checkpoint(self.checkpoint)
        self.team.check_same("checkpoint", 0 if state is None else state["step"])
        if self.team.leads:
            self.log.forget_after(-1 if state is None else state["step"])
        if state is None:
            return
        self.student.load_state_dict(state["student"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if len(state["sources"]) == self.team.place.size:  # others than before begin anew
            self.source.restore(state["sources"][self.team.place.rank])
        self.step, self.tokens = state["step"], state["tokens"]
        self.saved_step = self.step
        self.seconds = self.saved_at = state["seconds"]
        self.before = state["before"]


def _checkpoint_layers(module: Any) -> None:
    """In eval mode it does nothing. transformers 5.23 calls it activation checkpointing."""
    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise CompressError(
            f"{type(module).__name__} cannot do without the activations of its layers; leave --gradient-checkpointing "
            "out, and make the batches smaller."
        ) from error


_BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"


def _shown(step: int, told: dict[str, float], held_out: dict[str, float]) -> str:
    line = f"step {step}, loss {told['loss']:.3f}"
    if held_out:
        line += f", held out {held_out['loss']:.3f}"
    return f"{line}, {told['tokens_per_second']:,.0f} tokens/s"


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}


def _seed(seed: int, step: int) -> int:
    """Of what is random within a step (dropout)."""
    return seed * 1_000_003 + step
