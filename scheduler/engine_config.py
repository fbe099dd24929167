"""Settings of one engine, resolved before it starts. Knows nothing of where they came from."""

from typing import Literal

import msgspec

from ..config import SparseAttention
from ..errors import ConfigError, InvalidRequestError
from ..kernels.span import PROMPT_BLOCK

Precision = Literal["auto", "none", "w8a8", "w8a16", "w4a16"]
KVCacheDtype = Literal["auto", "none", "int8"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to load and run one model.

    Attributes:
        model: a local folder, a hub id, or "builtin".
        quantize: "w8a8" for INT8 linears and experts, "w8a16" and "w4a16" for weights alone in 8 or 4 bits,
            "none" for as stored, "auto": as a folder of quantized weights is stored, w8a8 for the built-in model, else none.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        adapters: LoRA adapters by the name that requests choose them by: folders as PEFT saves them.
        max_model_len: longest prompt + completion in tokens; None takes the model's own.
        max_num_seqs: most sequences computed in one step.
        max_num_batched_tokens: most tokens computed in one step.
        max_waiting: most requests that wait; beyond it they are refused with `OverloadedError`.
        trust_max_tokens: whether answers are about as long as max_tokens allows: a request is then admitted only where KV
            for all of it is sure to be there, and (drafts apart) none is preempted. Else as many are as have room now.
        tenant_weights: shares of the engine by tenant, where several want more than there is; 1 for who is not named.
        kv_cache_tokens: tokens the KV pool holds; None sizes it from memory.
        kv_cache_dtype: "none" stores KV as it is computed, "int8" quantizes it per token and head, "auto": as the
            model's folder says, else as computed.
        gpu_memory_utilization: share of the GPU memory left by the weights that KV may take.
        block_size: tokens per KV block; None takes what the machine's attention is made for.
        sparse_attention: None attends to all keys.
        speculation: whether the engine guesses tokens that a step then verifies, by what followed the same tokens before;
            "auto": where no answer can depend on it by its last bits (w8a8). Drafts that come with a request are
            verified in any case.
        draft_model: a smaller model with the same vocabulary, named as `model` is, that guesses tokens too, as far as it
            pays. None for none.
        draft_quantize: `quantize` of the draft model; "auto": as its folder is stored, else the precision of the model it
            guesses for.
        decode_graphs: whether steps that only decode are replayed as CUDA graphs, which are recorded as they are needed;
            "auto": on a GPU.
        prompt_graphs: whether steps that compute prompts are replayed as CUDA graphs too, but for their attention, recorded
            while the engine loads (some 16 s for the shape of Llama 3 8B on an H100); "auto": on a GPU.
        overlap: whether the next step is scheduled while one is computed, where its tokens need not be known for that: none
            of its sequences has a grammar, penalties or log-probabilities, or repeats what can be guessed; "auto": on a
            GPU. (On a CPU a thread computes beside, which is for tests.)
        prefix_caching: reuse KV of equal prompt beginnings.
        threads: CPU threads of the engine; None takes every core (for a small model's short steps, one).
        device: "auto" (CUDA where there is one), "cpu", "cuda", or "interpreter" (the GPU's kernels as Python, for tests).
    """

    model: str = "builtin"
    quantize: Precision = "auto"
    dtype: str = "auto"
    adapters: dict[str, str] = {}
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_waiting: int = 1024
    trust_max_tokens: bool = False
    tenant_weights: dict[str, float] = {}
    kv_cache_tokens: int | None = None
    kv_cache_dtype: KVCacheDtype = "auto"
    gpu_memory_utilization: float = 0.9
    block_size: int | None = None
    sparse_attention: SparseAttention | None = None
    speculation: Literal["auto", "on", "off"] = "auto"
    draft_model: str | None = None
    draft_quantize: Precision = "auto"
    decode_graphs: Literal["auto", "on", "off"] = "auto"
    prompt_graphs: Literal["auto", "on", "off"] = "auto"
    overlap: Literal["auto", "on", "off"] = "auto"
    prefix_caching: bool = True
    threads: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.", param=name)
        for name in ("max_model_len", "kv_cache_tokens", "block_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1, or left out.", param=name)
        for adapter in self.adapters:
            if not adapter.isprintable() or not adapter or set(adapter) & {":", ",", "="}:
                raise ConfigError(
                    f"adapters names one {adapter!r}; a name must be printable, without ':', ',' and '='.",
                    param="adapters",
                )
        for tenant, weight in self.tenant_weights.items():
            if not 0 < weight < float("inf"):
                raise ConfigError(
                    f"tenant_weights[{tenant!r}] is {weight}; it must be a number above 0.",
                    param="tenant_weights",
                )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0 and at most 1.",
                param="gpu_memory_utilization",
            )
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(
                f"dtype is {self.dtype!r}; it must be auto, float32, bfloat16 or float16.", param="dtype"
            )
        if self.draft_model is not None and self.speculation == "off":
            raise ConfigError(
                f"draft_model is {self.draft_model!r}, but speculation is 'off', so it would guess nothing; leave one out.",
                param="draft_model",
            )
        if self.draft_quantize != "auto" and self.draft_model is None:
            raise ConfigError(
                f"draft_quantize is {self.draft_quantize!r}, but there is no draft_model; give one, or leave it out.",
                param="draft_quantize",
            )
        if self.sparse_attention is not None:
            self.check_room_for_prompts(self.sparse_attention, ConfigError)

    def check_room_for_prompts(
        self, sparse: SparseAttention, refusal: type[ConfigError | InvalidRequestError]
    ) -> None:
        """Raises `refusal` where a step could be too small for a block of a sparse prompt beside everyone's decodes."""
        needed = PROMPT_BLOCK + self.max_num_seqs - 1
        if sparse.prompt_mass is not None and self.max_num_batched_tokens < needed:
            raise refusal(
                f"max_num_batched_tokens is {self.max_num_batched_tokens} and max_num_seqs {self.max_num_seqs}; sparse "
                f"prompts (sparse_attention.prompt_mass) are computed by whole blocks of {PROMPT_BLOCK} tokens beside the "
                f"others' decodes, so a step must hold at least {needed}: raise it, lower "
                "max_num_seqs, or leave prompt_mass out.",
                param="max_num_batched_tokens" if refusal is ConfigError else "sparse_attention",
            )
