"""What a caller may ask of one completion, checked once at the edge. Knows nothing of text or HTTP."""

from typing import Annotated, Literal, get_type_hints

import msgspec

from ..config import SparseAttention
from ..errors import ConfigError, InvalidRequestError
from .grammar import Grammar

MAX_LOGPROBS = 20
MAX_N = 128
# Each is looked for in every new piece of text: 100,000 of them held up all streams for seconds.
MAX_STOP = 64
UNLIMITED = -1


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose the tokens of one completion.

    Attributes:
        n: completions to generate for the prompt, 1..128.
        max_tokens: most tokens to generate; None means up to the model's context length.
        min_tokens: tokens before which neither EOS nor a stop token may appear.
        temperature: 0 is greedy; otherwise logits are divided by it, up to 2 by OpenAI's API, any value >= 0 here.
        top_k: keep the k likeliest tokens; -1 (or 0) keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p, 0 < p <= 1.
        min_p: drop tokens less likely than min_p times the likeliest, 0..1.
        seed: makes sampling reproducible; None draws one at admission.
        presence_penalty, frequency_penalty: subtracted once / per occurrence in the output, -2..2.
        repetition_penalty: divides (or multiplies) logits of tokens seen in prompt or output, 0.01..100.
        logit_bias: token id -> bias added to its logit, -100..100.
        logprobs: None for none, else how many alternatives to report beside the chosen token, 0..20.
        stop: at most 64 strings that end the completion; the text ends before the match.
        stop_token_ids: token ids that end the completion (not part of the text).
        no_stop_after: behind this text no stop string is looked for: a tool call that it opens is not cut.
        shown_token_ids: special tokens that are written in the text; others never are.
        ignore_eos: go on after the model's own end-of-text token.
        sparse_attention: instead of the engine's own; False attends to all keys.
        drafters: who guesses tokens to be verified, instead of the engine's own choice: "ngram", "grammar" for what a
            grammar forces, "draft_model" where the engine has one; () for nobody. The output is the same with any.
        hidden_state: with the first token comes what it is chosen by, the model's final hidden state behind the prompt. The
            prompt is then computed as a whole, and leaves nothing in the prefix cache.
        adapter: name of the LoRA adapter to compute it with; None for the model as it is.
        grammar: what the output must be, a JSON schema for instance; it ends where nothing more may follow.

    Raises InvalidRequestError naming the field, its value and its limit.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = UNLIMITED
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    no_stop_after: str | None = None
    shown_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    sparse_attention: SparseAttention | bool | None = None
    drafters: tuple[Literal["ngram", "grammar", "draft_model"], ...] | None = None
    grammar: Grammar | None = None
    hidden_state: bool = False
    adapter: str | None = None

    def __post_init__(self) -> None:
        _make_typed(self)
        _within("n", self.n, 1, MAX_N)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, None)
        _within("min_tokens", self.min_tokens, 0, self.max_tokens)
        _within("temperature", self.temperature, 0.0, None)
        _within("top_k", self.top_k, UNLIMITED, None)
        _within("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidRequestError("top_p is 0; it must be above 0 and at most 1.", param="top_p")
        _within("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _within("seed", self.seed, -(2**63), 2**64 - 1)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        # Far beyond any use, and near enough to 1 that no logit overflows.
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        for token_id, bias in (self.logit_bias or {}).items():
            _within(f"logit_bias[{token_id}]", bias, -100.0, 100.0)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if len(self.stop) > MAX_STOP:
            raise InvalidRequestError(
                f"stop holds {len(self.stop)} strings; it must be at most {MAX_STOP}.", param="stop"
            )
        if any(not text for text in self.stop):
            raise InvalidRequestError("stop contains an empty string; remove it.", param="stop")
        if self.grammar is not None and self.min_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}, but a grammar decides where the output ends; leave one out.",
                param="min_tokens",
            )
        if self.sparse_attention is True:
            raise InvalidRequestError(
                "sparse_attention is true; give its mass and min_context, or leave it out for the engine's own.",
                param="sparse_attention",
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def changes_logits(self) -> bool:
        """Whether a penalty, a bias or a least length has a say beside the model."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.min_tokens
        )


_TYPES = get_type_hints(SamplingParams)
_MACHINE_INT = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


def checked_token_ids(given: object, name: str = "prompt") -> list[int]:
    """A copy of a prompt, or of what else is a list of tokens, as plain integers, whether or not the model has them.

    Raises InvalidRequestError for anything else: it could not travel to the engine, or would stop it there.
    """
    try:
        return msgspec.convert(given, list[_MACHINE_INT])
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"The {name} must be a list of token ids: {error}.", param=name) from error


def _make_typed(params: SamplingParams) -> None:
    """Annotations bind no caller, and the engine decodes strictly: `stop="x"` would end it with all its requests."""
    for name, kind in _TYPES.items():
        value = getattr(params, name)
        try:
            msgspec.structs.force_setattr(params, name, msgspec.convert(value, kind))
        except msgspec.ValidationError as error:
            raise InvalidRequestError(f"{name} is {value!r}: {error}.", param=name) from error
        except ConfigError as error:  # a value that no setting may have either
            raise InvalidRequestError(error.message, param=name) from error


def _within(name: str, value: float, low: float, high: float | None) -> None:
    # NaN compares false with everything, so the test is for being inside, not outside.
    if low <= value and (high is None or value <= high) and value < float("inf"):
        return
    limit = f"at least {low}" if high is None else f"between {low} and {high}"
    raise InvalidRequestError(f"{name} is {value}; it must be {limit}.", param=name.split("[")[0])
