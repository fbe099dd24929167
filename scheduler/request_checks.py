"""What a request may not ask of an engine: every refusal names the value, the limit and the remedy."""

from ..config import SparseAttention
from ..errors import ContextLengthError, InvalidRequestError
from .engine_config import EngineConfig
from .outputs import ModelInfo
from .sampling_params import SamplingParams, checked_token_ids


def check_request(
    config: EngineConfig,
    info: ModelInfo,
    prompt_token_ids: list[int],
    params: SamplingParams,
    draft_token_ids: list[int],
) -> None:
    """Raises InvalidRequestError or ContextLengthError for what the engine of `config` and `info` cannot compute."""
    checked_token_ids(prompt_token_ids)
    if not prompt_token_ids:
        raise InvalidRequestError("The prompt is empty; give at least one token.", param="prompt")
    if params.adapter is not None and params.adapter not in info.adapters:
        known = ", ".join(info.adapters) or "none"
        raise InvalidRequestError(
            f"adapter is {params.adapter!r}; this engine has: {known}.", param="adapter"
        )
    if params.hidden_state and not info.hidden_size:
        raise InvalidRequestError(
            f"hidden_state is asked for, but {info.architecture} keeps its hidden states to itself; leave it out.",
            param="hidden_state",
        )
    _check_token_ids(info, prompt_token_ids, params, draft_token_ids)
    _check_drafters(info, params)
    _check_sparse_attention(config, params)
    needed = len(prompt_token_ids) + (params.max_tokens or 1)
    if needed > info.max_model_len:
        raise ContextLengthError(
            f"The prompt has {len(prompt_token_ids)} tokens and max_tokens is {params.max_tokens or 1}, "
            f"{needed} together; this model takes {info.max_model_len}. Shorten the prompt or lower max_tokens.",
            param="max_tokens" if len(prompt_token_ids) < info.max_model_len else "prompt",
        )
    if params.n > config.max_waiting:
        raise InvalidRequestError(
            f"n is {params.n}, but at most {config.max_waiting} sequences may wait; lower n.",
            param="n",
        )


def check_draft(info: ModelInfo, draft_token_ids: list[int]) -> None:
    """Raises InvalidRequestError for a draft with token ids that the model does not have."""
    _check_vocabulary(info, "draft_token_ids", draft_token_ids)


def _check_vocabulary(info: ModelInfo, name: str, token_ids: list[int]) -> None:
    size = info.vocab_size
    worst = max(token_ids, key=lambda token: token if token >= 0 else size - token, default=0)
    if not 0 <= worst < size:
        raise InvalidRequestError(
            f"The {name} holds token id {worst}; this model's ids are 0 to {size - 1}.", param=name
        )


def _check_token_ids(
    info: ModelInfo, prompt_token_ids: list[int], params: SamplingParams, draft_token_ids: list[int]
) -> None:
    vocab_size = info.vocab_size
    _check_vocabulary(info, "prompt", prompt_token_ids)
    check_draft(info, draft_token_ids)
    for name, token_ids in (
        ("logit_bias", params.logit_bias or {}),
        ("stop_token_ids", params.stop_token_ids),
    ):
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"{name} names token id {token_id}; this model's ids are 0 to {vocab_size - 1}.",
                    param=name,
                )
    if params.min_tokens and len({*params.stop_token_ids, *info.eos_token_ids}) >= vocab_size:
        raise InvalidRequestError(
            f"stop_token_ids names every token there is, and min_tokens is {params.min_tokens}: no token is left.",
            param="stop_token_ids",
        )


def _check_drafters(info: ModelInfo, params: SamplingParams) -> None:
    if "draft_model" in (params.drafters or ()) and not info.draft_model:
        raise InvalidRequestError(
            "drafters names 'draft_model', but this engine has none; start it with draft_model = 'FOLDER', or leave it out.",
            param="drafters",
        )


def _check_sparse_attention(config: EngineConfig, params: SamplingParams) -> None:
    own, engines = params.sparse_attention, config.sparse_attention
    if own and engines is None:
        raise InvalidRequestError(
            "sparse_attention is asked for, but this engine keeps nothing to choose keys by; start it with "
            "sparse_attention = {mass = 1.0} to have it on request.",
            param="sparse_attention",
        )
    if isinstance(own, SparseAttention) and engines is not None and own.estimate != engines.estimate:
        raise InvalidRequestError(
            f"sparse_attention.estimate is '{own.estimate}'; this engine estimates from '{engines.estimate}'.",
            param="sparse_attention",
        )
    if isinstance(own, SparseAttention):
        config.check_room_for_prompts(own, InvalidRequestError)
