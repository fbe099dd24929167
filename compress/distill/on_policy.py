"""Batches of the student's own answers among those of the data, as in GKD (Agarwal et al. 2024).

What the student writes by itself is where it will stand when it serves or drafts; there the teacher grades it. The answers
are sampled anew every REFRESH steps, not every step: sampling goes token by token, and is what takes the time.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..texts import Tokens
from ..training.batches import ONLY, Batch, Batches, Place, in_order

REFRESH = 20
ROWS = 32  # sampled at a time


class OnPolicy:
    """A BatchSource: at each step, with probability `share`, a batch that the student wrote.

    Args:
        texts: whose prompts are answered; of a text without a prompt, its first quarter is one.
        student: samples in whatever mode and place it is.
        ends: ids that end an answer.
        vocab_size: ids from there on are never written: they only pad the student's matrices.
        place: all places draw from the data, or not, at the same steps, so that none waits for one that samples.
    """

    def __init__(
        self,
        texts: Sequence[Tokens],
        student: Any,
        *,
        share: float,
        batch_tokens: int,
        seed: int,
        ends: frozenset[int],
        vocab_size: int,
        place: Place = ONLY,
    ) -> None:
        self._data = Batches(texts, batch_tokens, seed, place)
        self._texts, self._student, self._ends, self._vocab_size = texts, student, ends, vocab_size
        self._share, self._batch_tokens, self._seed, self._place = share, batch_tokens, seed, place
        self._round, self._written = -1, list[Tokens]()

    def at(self, step: int) -> Batch:
        draw = random.Random(f"{self._seed} {step}")
        if draw.random() >= self._share:
            return self._data.at(step)
        if step // REFRESH != self._round:
            self._round = step // REFRESH
            self._written = self._sampled(
                random.Random(f"{self._seed} round {self._place.index(self._round)}")
            )
        batches = list(in_order(self._written, self._batch_tokens))
        chosen = draw.choice(batches)
        return Batch(chosen.ids, chosen.labels, written_by_student=True)

    def state(self) -> dict[str, Any]:
        return {"round": self._round, "written": [(text.ids, text.learn) for text in self._written]}

    def restore(self, state: dict[str, Any]) -> None:
        self._round = state["round"]
        self._written = [Tokens(ids, learn) for ids, learn in state["written"]]

    def _sampled(self, draw: random.Random) -> list[Tokens]:
        """As many tokens as the batches until the next round will take, or one batch's."""
        wanted = max(1.0, self._share * REFRESH) * self._batch_tokens
        written: list[Tokens] = []
        tokens = 0
        while tokens < wanted:
            chosen = sorted(draw.sample(self._texts, min(ROWS, len(self._texts))), key=lambda t: len(t.ids))
            answered = sample_answers(self._student, chosen, self._ends, self._vocab_size)
            written += answered
            tokens += sum(len(text.ids) for text in answered)
        return written


@torch.no_grad()
def sample_answers(
    student: Any, texts: Sequence[Tokens], ends: frozenset[int], vocab_size: int
) -> list[Tokens]:
    """One answer at temperature 1 to the prompt of each text, at most as long as the longest of theirs."""
    prompts = [prompt_of(text) for text in texts]
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # on the right, where answers follow
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    was_training = student.training
    student.eval()
    written: Tensor = student.generate(
        ids.to(student.device),
        attention_mask=mask.to(student.device),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        suppress_tokens=list(range(vocab_size, student.config.get_text_config().vocab_size)) or None,
        max_new_tokens=max(len(text.ids) - len(prompt) for text, prompt in zip(texts, prompts, strict=True)),
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),  # what follows the end is cut off
    )
    student.train(was_training)
    found = []
    for prompt, row in zip(prompts, written[:, longest:].tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        found.append(Tokens(prompt + row[:end], [False] * len(prompt) + [True] * end))
    return found


def prompt_of(text: Tokens) -> list[int]:
    """What stands before the first token that the model writes; of a text that it writes whole, the first quarter."""
    first = text.learn.index(True, 1)
    return text.ids[: first if first > 1 else max(1, len(text.ids) // 4)]
