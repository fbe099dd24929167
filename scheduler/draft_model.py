"""A smaller model that guesses what the target will say: each token as the target would choose it, with the same noise.

Its KV lies in the blocks of the target's sequences, in tensors of its own: one block table serves both, and a prefix that
both have computed is found by both. Which of a sequence's tokens it has computed is the block manager's to know; it keeps
nothing of a sequence itself. It attends to all keys, however the target attends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from ..errors import ModelLoadError
from ..kernels.dispatch import sampler_of
from ..kernels.span import Span
from ..models.kv_cache import bytes_per_token, make_kv_cache
from ..models.loading import LoadedModel, load_model
from ..models.vocabulary import refuse_other_vocabulary
from .draft_plan import DraftRows
from .engine_config import EngineConfig
from .forward import Forward
from .sampler import Place, draw, draws_of
from .sequence import Sequence
from .step_times import StepTimes


@dataclass(slots=True)
class _Piece:
    """Tokens of one sequence that a run computes, and whether the token behind them is guessed."""

    seq: Sequence
    span: Span
    guesses: bool

    @property
    def order(self) -> tuple[bool, int]:
        """Decodes first, by context length."""
        return not self.span.is_decode, self.span.context_len


def load_draft_model(config: EngineConfig, target: LoadedModel) -> LoadedModel | None:
    """The draft model that `config` asks for, checked to mean the same by a token as its target.

    Raises ModelLoadError naming both models and the remedy.
    """
    if config.draft_model is None:
        return None
    try:
        draft = load_model(
            config.draft_model,
            dtype=config.dtype,
            quantize=config.draft_quantize,
            default_precision="w8a8" if target.precision == "mixed" else target.precision,
            kv_cache_dtype=config.kv_cache_dtype,
            device=config.device,
        )
    except ModelLoadError as error:
        raise ModelLoadError(f"draft_model: {error.message}", param="draft_model") from error
    refuse_other_vocabulary(draft.path, target.path)
    return draft


class DraftModel:
    """Guesses for all sequences of a step together, one token a run.

    Args:
        model: the one that guesses.
        target: the one whose tokens are guessed; their vocabularies are the same but for padding.
        num_blocks, block_size, kv_dtype: of the KV pool.
        config: of the engine.

    Attributes:
        times: what its runs take, by their number of tokens.

    Raises ModelLoadError when its KV cannot be kept in such blocks.
    """

    def __init__(
        self,
        model: LoadedModel,
        target: LoadedModel,
        *,
        num_blocks: int,
        block_size: int,
        kv_dtype: torch.dtype,
        config: EngineConfig,
    ) -> None:
        self.model = model
        self.max_model_len = model.max_model_len
        self.times = StepTimes()
        self._target = target
        self._sampler = sampler_of(model.backend)
        try:
            kv_cache = make_kv_cache(model.backend, model.layers, num_blocks, block_size, kv_dtype)
        except ValueError as error:
            raise ModelLoadError(f"draft_model {model.path.name}: {error}") from error
        # Recording takes seconds; what it would gain a draft model was not measured.
        self._forward = Forward(model, kv_cache, replace(config, prompt_graphs="off"))
        self.kv_bytes_per_token = bytes_per_token(model.layers, kv_dtype)

    def describe(self, target_bytes: int) -> str:
        """Name, size, precision and memory in one line; `target_bytes`: of the target's KV of one token."""
        model = self.model
        precision = (
            str(model.dtype).removeprefix("torch.") if model.precision == "none" else model.precision.upper()
        )
        return (
            f"{model.path.name} ({model.architecture}, {model.num_parameters / 1e6:.1f}M parameters, {precision}), "
            f"up to {model.max_model_len} tokens; KV of {self.kv_bytes_per_token} bytes a token beside "
            f"the model's {target_bytes}"
        )

    @torch.inference_mode()
    def guess(self, work: list[DraftRows], clock: Callable[[], float]) -> None:
        """Compute the tokens of `work`, then give each sequence the draft that is planned for it, or a shorter one where it
        ends by itself."""
        pieces = [
            _Piece(
                rows.seq,
                Span(rows.seq.block_table, rows.start, rows.stop - rows.start),
                guesses=rows.num_planned > 0,
            )
            for rows in work
        ]
        planned = {rows.seq: rows.num_planned for rows in work}
        while pieces:
            started, num_rows = clock(), sum(piece.span.num_tokens for piece in pieces)
            guessed = self._run(pieces)
            self.times.record(num_rows, clock() - started)
            pieces = [
                _Piece(seq, Span(seq.block_table, seq.num_tokens + len(seq.draft) - 1, 1), guesses=True)
                for seq in guessed
                if len(seq.draft) < planned[seq] and not _has_ended(seq)
            ]

    def _run(self, pieces: list[_Piece]) -> list[Sequence]:
        """Compute the pieces; returns the sequences that got another guess."""
        pieces = sorted(pieces, key=lambda piece: piece.order)
        input_ids: list[int] = []
        positions: list[int] = []
        guessing: list[Sequence] = []
        last_rows: list[int] = []
        for piece in pieces:
            start, stop = piece.span.first_position, piece.span.context_len
            input_ids += _tokens(piece.seq, start, stop)
            positions += range(start, stop)
            if piece.guesses:
                guessing.append(piece.seq)
                last_rows.append(len(input_ids) - 1)
        device = self.model.backend.device
        # Ids beyond its own are the target's padding.
        ids = torch.tensor([input_ids], device=device).clamp_(max=self.model.vocab_size - 1)
        logits = self._forward.logits(
            ids,
            torch.tensor([positions], device=device),
            torch.tensor(last_rows, dtype=torch.long, device=device),
            [piece.span for piece in pieces],
        )
        if not guessing:
            return []
        places = [Place(seq, len(seq.draft)) for seq in guessing]
        drawn = draw(
            self._as_of_target(logits),
            places,
            draws_of(places),
            self._target.eos_token_ids,
            self._sampler,
            with_logprobs=False,
        )
        guessed = []
        for seq, token in zip(guessing, drawn.tokens(), strict=True):
            if token is not None:
                seq.draft.append(token.token_id)
                guessed.append(seq)
        return guessed

    def _as_of_target(self, logits: Tensor) -> Tensor:
        """[S, V] over the target's vocabulary, of which either model may have padded its own."""
        missing = self._target.vocab_size - logits.shape[-1]
        if missing > 0:
            return torch.nn.functional.pad(logits.float(), (0, missing), value=float("-inf"))
        return logits[:, : self._target.vocab_size]


def _tokens(seq: Sequence, start: int, stop: int) -> list[int]:
    known = seq.token_ids[start:stop]
    if stop <= seq.num_tokens:
        return known
    return known + seq.draft[max(0, start - seq.num_tokens) : stop - seq.num_tokens]


def _has_ended(seq: Sequence) -> bool:
    """Whether nothing follows the sequence's draft."""
    if seq.draft[-1] in seq.stop_token_ids:
        return True
    return seq.matcher is not None and seq.matcher.is_complete_after(seq.draft)
