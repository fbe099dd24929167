"""Calibration texts on their way through a model, block after block: only what goes from one block to the next is kept.

Knows how transformers' models call their blocks; knows nothing of rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CompressError
from ..plain_model import blocks
from ..texts import Tokens

# Padded tokens that go through a block at a time.
BATCH_TOKENS = 1024
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts, padded on the right, which with causal attention none of their tokens sees; all [B, T].

    Attributes:
        keep: where there is a token; predicts: whose next token is one that the model writes.
    """

    ids: Tensor
    keep: Tensor
    predicts: Tensor


def as_batches(texts: Sequence[Tokens], batch_tokens: int = BATCH_TOKENS) -> list[Batch]:
    """By length, so that little is padding."""
    found: list[Batch] = []
    pending: list[Tokens] = []
    for text in sorted(texts, key=lambda text: len(text.ids)):
        if pending and (len(pending) + 1) * len(text.ids) > batch_tokens:
            found.append(_padded(pending))
            pending = []
        pending.append(text)
    if pending:
        found.append(_padded(pending))
    return found


def _padded(texts: list[Tokens]) -> Batch:
    shape = (len(texts), max(len(text.ids) for text in texts))
    ids, keep, predicts = (torch.zeros(shape, dtype=kind) for kind in (torch.int64, torch.bool, torch.bool))
    for row, text in enumerate(texts):
        count = len(text.ids)
        ids[row, :count] = torch.tensor(text.ids)
        keep[row, :count] = True
        predicts[row, : count - 1] = torch.tensor(text.learn[1:])
    return Batch(ids, keep, predicts)


@dataclass(frozen=True, slots=True)
class Ending:
    """Activations behind the last block, of each batch, and what computes logits from them in the place of the head."""

    hidden: list[Tensor]
    head: Callable[[Tensor], Tensor] | None = None


@contextmanager
def in_float32(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Float32 copies in the place of what is stored, which may be changed, and are gone afterwards."""
    stored = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = parameter.data.to(torch.float32, copy=True)
        yield
    finally:
        for parameter, data in zip(parameters, stored, strict=True):
            parameter.data = data


class Passage:
    """A model's blocks, and what each is called with beside the activations.

    Args:
        module: a causal language model of transformers; left as it is.
        texts: what goes through it.

    Attributes:
        start: of each batch, the activations [B, T, H] that enter the first block, float32.

    Raises CompressError where the model does not compute what we take it for.
    """

    def __init__(self, module: Any, texts: Sequence[Tokens]) -> None:
        self.name, self.blocks = blocks(module)
        self.batches = as_batches(texts)
        self.tokens = sum(int(batch.keep.sum()) for batch in self.batches)
        self.start: list[Tensor] = []
        self._module = module
        inside = {id(parameter) for parameter in self.blocks.parameters()}
        self._outside = [parameter for parameter in module.parameters() if id(parameter) not in inside]
        self._in_tuple = self._see_outputs()
        self._calls = [self._calls_on(batch) for batch in self.batches]
        if any(len(calls) != len(self.blocks) for calls in self._calls):
            raise CompressError(
                f"{type(module).__name__} does not call its {len(self.blocks)} layers one after the other; "
                "it cannot be compressed here."
            )

    @torch.no_grad()
    def through(self, index: int, hidden: list[Tensor]) -> list[Tensor]:
        """What block `index`, as it is now, makes of what enters it; call it within `in_float32`."""
        return [self.step(index, number, states) for number, states in enumerate(hidden)]

    @torch.no_grad()
    def step(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        """Of one batch."""
        rest, named = self._calls[batch][index]
        output = self.blocks[index](hidden, *rest, **named)
        states: Tensor = output[0] if self._in_tuple else output
        return states

    @torch.no_grad()
    def logits(self, endings: Sequence["Ending"]) -> Iterator[list[Tensor]]:
        """Of each text, by each of `endings`: [n, V] at the n tokens that predict one to be learnt."""
        last = len(self.blocks) - 1
        head = self._module.get_output_embeddings()
        with in_float32(self._outside):
            for number, batch in enumerate(self.batches):
                for row, chosen in enumerate(batch.predicts):
                    if not chosen.any():
                        continue
                    found = []
                    for ending in endings:
                        states = ending.hidden[number][row : row + 1]

                        def give(
                            index: int, own: Tensor, *_: Any, states: Tensor = states, **__: Any
                        ) -> Tensor:
                            return states if index == last else own

                        with self._standing_in(give), _computed_by(head, ending.head):
                            out = self._module(input_ids=batch.ids[row : row + 1], use_cache=False).logits
                        found.append(out[0, chosen].float())
                    yield found

    def _calls_on(self, batch: Batch) -> list[Call]:
        """What each block is called with beside the activations, which go into `start` before the first."""
        calls: list[Call] = []
        known: dict[Tensor, Tensor] = {}  # blocks are given the same angles and masks, which are kept once

        def note(index: int, hidden: Tensor, *rest: Any, **named: Any) -> Tensor:
            if index == 0:
                self.start.append(hidden.float())
            calls.append((_as_float32(rest, known), _as_float32(named, known)))
            return hidden

        with self._standing_in(note):
            self._backbone(batch.ids)
        return calls

    def _backbone(self, ids: Tensor) -> None:
        with torch.no_grad():
            self._module.base_model(input_ids=ids.to(self._module.device), use_cache=False)

    def _see_outputs(self) -> bool:
        """Whether blocks give their activations as the first of a tuple."""
        seen: list[bool] = []
        handle = self.blocks[0].register_forward_hook(
            lambda module, args, out: seen.append(isinstance(out, tuple))
        )
        try:
            self._backbone(torch.tensor([[0, 0]]))
        except Exception as error:  # whatever the model's own code raises
            raise CompressError(
                f"{type(self._module).__name__} cannot compute two tokens: {error}"
            ) from error
        finally:
            handle.remove()
        return bool(seen) and seen[0]

    @contextmanager
    def _standing_in(self, forward: Callable[..., Tensor]) -> Iterator[None]:
        """`forward(index, hidden, ...)` in the place of every block."""

        def stand_in(index: int, *args: Any, **named: Any) -> Any:
            hidden, *rest = (named.pop("hidden_states"), *args) if "hidden_states" in named else args
            states = forward(index, hidden, *rest, **named)
            return (states,) if self._in_tuple else states

        try:
            for index, block in enumerate(self.blocks):
                block.forward = partial(stand_in, index)
            yield
        finally:
            for block in self.blocks:
                vars(block).pop("forward", None)


@contextmanager
def _computed_by(head: nn.Module, function: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    if function is None:
        yield
        return
    handle = head.register_forward_hook(lambda _module, inputs, _output: function(inputs[0]))
    try:
        yield
    finally:
        handle.remove()


def _as_float32(value: Any, known: dict[Tensor, Tensor]) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        if value not in known:
            known[value] = value.float()
        return known[value]
    if isinstance(value, tuple):
        return tuple(_as_float32(part, known) for part in value)
    if isinstance(value, dict):
        return {key: _as_float32(part, known) for key, part in value.items()}
    return value
