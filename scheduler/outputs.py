"""What the engine says about a request, as small values that travel between processes."""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one generated token under the model's raw distribution (before temperature)."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest alternatives, best first: (token id, log-probability)."""


class Delta(msgspec.Struct, array_like=True):
    """What one engine step added to one sequence, in token ids."""

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The stop token that ended the sequence: the last of `token_ids`, no part of the text."""
    num_cached_tokens: int = 0
    error: str | None = None
    retry_after: float | None = None
    """With an error that is no fault of the request: it came too late, and may be sent again in so many seconds."""
    param: str | None = None
    """With an error that is the request's own fault: the field to name."""
    queue_seconds: float | None = None
    """With the first token only: how long the sequence waited to be scheduled."""
    hidden_state: bytes | None = None
    """With the first token only, where it was asked for: what that was chosen by, float32 in this machine's byte order."""


class Chunk(msgspec.Struct):
    """A piece of one completion as its reader sees it: whole characters, stop strings applied.

    `text` may be empty while `token_ids` is not (an unfinished character, or a possible stop string held back).
    The last chunk of each index carries a `finish_reason`; nothing follows it for that index.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended the text, None for EOS or another reason."""
    num_cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""
    queue_seconds: float | None = None
    """In the first chunk only: how long the sequence waited in the engine's queue."""
    hidden_state: bytes | None = None
    """In the first chunk only, where `SamplingParams` asks for it: [hidden_size] float32."""


class Completion(msgspec.Struct):
    """One finished completion of `Engine.generate`."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None
    stop_reason: int | str | None = None
    hidden_state: bytes | None = None


class GenerationResult(msgspec.Struct):
    """All completions of one prompt."""

    prompt_token_ids: list[int]
    completions: list[Completion]
    num_cached_tokens: int = 0


class SparseStats(msgspec.Struct, array_like=True):
    """Sums over what sparse attention decoded, one for every row and layer, and over its prompts' blocks; see
    `SparseTelemetry`."""

    rows: int = 0
    fallbacks: int = 0
    kept_tokens: int = 0
    context_tokens: int = 0
    estimated_mass: float = 0.0
    sampled_rows: int = 0
    sampled_mass: float = 0.0
    bounded_rows: int = 0
    dropped_bound: float = 0.0
    prompt_blocks: int = 0
    prompt_kept_tokens: int = 0
    prompt_context_tokens: int = 0
    prompt_estimated_mass: float = 0.0


class DrafterStats(msgspec.Struct, array_like=True):
    """Of one kind of drafter: steps that verified a guess of its, tokens guessed, and those that were right."""

    verifications: int = 0
    drafted: int = 0
    accepted: int = 0


class EngineStats(msgspec.Struct, array_like=True):
    """A snapshot of the engine, sent with every step. Counters count since the engine started."""

    num_running: int = 0
    num_waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
    preemptions: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    """Prompt tokens computed (cached ones not counted)."""
    generation_tokens: int = 0
    sparse: SparseStats = msgspec.field(default_factory=SparseStats)
    drafters: dict[str, DrafterStats] = msgspec.field(default_factory=dict)

    @property
    def kv_usage(self) -> float:
        return self.kv_blocks_used / self.kv_blocks_total if self.kv_blocks_total else 0.0


class ModelInfo(msgspec.Struct, frozen=True):
    """What the engine has loaded; sent once to every client that connects."""

    name: str
    path: str
    architecture: str
    fingerprint: str
    """Hex digest of weights, config and precision: changes whenever answers could."""
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    dtype: str
    precision: str
    """'w8a8', 'w8a16', 'w4a16', 'none' (floats as stored) or 'mixed' (`kernels` says how many layers have which)."""
    num_parameters: int
    kv_blocks_total: int
    block_size: int
    device: str
    kernels: str
    """Which kernels serve what, in one line."""
    draft_model: str = ""
    """The model that guesses tokens for this one, its precision and its memory, in one line; empty without one."""
    hidden_size: int = 0
    """Of a final hidden state; 0 where the model's own code keeps those to itself."""
    adapters: dict[str, str] = {}
    """LoRA adapters by name, and the digest of each one's files."""
