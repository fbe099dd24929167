"""From a folder or hub id to a model that the engine can run: checked, hooked, quantized."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelLoadError
from ..kernels.cpu.native.library import library
from ..kernels.dispatch import Backend, choose_backend
from ..native_build import chip_has
from . import attention_hook
from .compressed_tensors import check_values, extension, stored_linears
from .final_states import final_state_size, kept_states
from .fingerprint import fingerprint
from .fusion import fuse
from .inline_attention import attend_inline
from .json_file import read_json_object
from .kv_cache import LayerShape
from .location import BUILTIN_FOLDERS, resolve_model
from .lora import Adapters
from .model_call import feed_positions, keep_logits
from .native_forward import forward_of
from .native_layers import stack_layers
from .quantization_config import QuantizationConfig, quantization_config
from .quantized_experts import quantize_experts
from .quantized_linear import pack_linears, quantize_linears
from .quiet_loading import quietly, refuse_missing_weights
from .steady_linear import make_steady

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# input_ids and positions [1, T], the rows [S] whose logits are wanted, and the step's context -> [S, V].
LogitsOf = Callable[[Tensor, Tensor, Tensor, attention_hook.StepContext], Tensor]
# Of what another first token may change in the second row, where rows do not meet: products of other shapes round otherwise.
OF_ROUNDING = 1e-3
SERVED_LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A servable model and what the engine must know about it.

    Attributes:
        module: the transformers model, in eval mode, on its device, with our attention and our linears.
        forward: a step through it, with whatever of it is computed by other means.
        layers: what each attention layer stores per token, by layer index.
        dtype: of activations and KV.
        max_model_len: positions the model was made for.
        hidden_size: of a final hidden state; 0 where the model's own code keeps those to itself.
        precision: "w8a8", "w8a16", "w4a16", "none", or "mixed" where a folder's layers are stored in several.
        kv_cache_dtype: "int8" where KV is kept so, or "auto", as computed.
        backend: the kernels it computes with, and their device.
        fused: how many of the model's own parts each fused kernel stands in for.
        adapters: what may be added to it, row by row.
        linears: how many linear layers are served in each precision; "none" counts those left as stored.
        experts: of how many layers each kernel computes the experts, "torch" those left as stored; empty if not quantized.
    """

    module: Any
    forward: LogitsOf
    path: Path
    architecture: str
    fingerprint: str
    layers: dict[int, LayerShape]
    dtype: torch.dtype
    max_model_len: int
    vocab_size: int
    hidden_size: int
    eos_token_ids: list[int]
    precision: str
    kv_cache_dtype: str
    num_parameters: int
    backend: Backend
    fused: dict[str, int]
    experts: dict[str, int]
    adapters: Adapters
    linears: dict[str, int]


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    quantize: str = "auto",
    kv_cache_dtype: str = "auto",
    device: str = "auto",
    adapters: Mapping[str, str] = MappingProxyType({}),
    default_precision: str | None = None,
) -> LoadedModel:
    """Load `model` ("builtin", a local folder or a hub id) for serving; see `EngineConfig` for the settings.

    `default_precision`: what `quantize` = "auto" means for a folder of floats; None: "w8a8" for built-in ones, else "none".

    Raises ModelLoadError naming the model, the reason and the remedy.
    """
    try:
        backend = choose_backend(device)
    except ValueError as error:
        raise ModelLoadError(str(error)) from error
    path = resolve_model(model)
    config_file = read_json_object(path / "config.json")
    stored = quantization_config(config_file, path)
    if stored is not None:
        precision = _stored_precision(path, stored, quantize)
        kv_cache_dtype = _stored_kv_cache_dtype(path, stored, kv_cache_dtype, backend)
    elif quantize == "auto":
        precision = default_precision or ("w8a8" if model in BUILTIN_FOLDERS else "none")
    else:
        precision = quantize
    kv_cache_dtype = "auto" if kv_cache_dtype == "none" else kv_cache_dtype
    with ThreadPoolExecutor(1) as beside:  # reading and hashing release the GIL
        # What changes answers by rounding is part of what a cached one is filed under.
        rounding = [backend.kind, kv_cache_dtype]
        if backend.kind == "cpu":
            rounding = (["c"] if library() else []) + (["int8 kv"] if kv_cache_dtype == "int8" else [])
        digest = beside.submit(fingerprint, path, precision, dtype, *rounding)
        module = _from_pretrained(path, dtype, stored)
    config = module.config.get_text_config()
    _refuse_other_layers(type(module).__name__, config)
    num_parameters = _num_parameters(module)
    experts: dict[str, int] = {}
    linears: Counter[str] = Counter()
    if precision != "none":
        experts_to = precision if stored is None else stored.own.experts
        if experts_to is not None:
            experts = quantize_experts(module, backend, experts_to)
        rounded_to = (precision, None) if stored is None else (None, stored.own.output_layer)
        linears = quantize_linears(module, backend, *rounded_to)
        if not linears:
            raise ModelLoadError(f"{path} has no linear layers to quantize; serve it with quantize = 'none'.")
        if unserved := list(stored_linears(module)):
            raise ModelLoadError(
                f"{path} stores {unserved[0]} quantized, which picks experts or has a single input or output, and is served "
                "in floats only; quantize the original model anew with `penstock quantize`."
            )
        linears["none"] = sum(isinstance(part, nn.Linear) for part in module.modules())
        pack_linears(module)
        make_steady(module)
    module.to(backend.device).eval()
    fused = fuse(module, backend)
    probe, context_length = _probe_layers(module, config)
    hidden_size = final_state_size(
        module, partial(_compute_two_tokens, module, attention_hook.ProbeContext())
    )
    added = _load_adapters(module, adapters)
    forward: LogitsOf | None = None
    # What an adapter adds is added to single products, which the library keeps to itself.
    may_stack = linears["w8a8"] and backend.kind == "cpu" and not adapters
    if may_stack and (stacked := stack_layers(module, probe.arguments, probe.layers)):
        fused["layers"] = stacked
        forward = forward_of(module, probe.layers)
    compute_dtype = torch.float32 if precision != "none" and backend.kind == "cpu" else module.dtype
    if backend.kind == "cpu" and compute_dtype is torch.bfloat16 and not _has_bfloat16():
        log.warning(
            "%s is computed in bfloat16, for which this CPU has no instructions: dtype = 'float32' is usually faster, in "
            "twice the memory; quantize = 'w8a8' is faster and smaller",
            path,
        )
    return LoadedModel(
        module=module,
        forward=forward or partial(_compute, module),
        path=path,
        architecture=type(module).__name__,
        fingerprint=digest.result(),
        layers=probe.layers,
        dtype=compute_dtype,
        max_model_len=context_length,
        vocab_size=config.vocab_size,
        hidden_size=hidden_size,
        eos_token_ids=_eos_token_ids(module),
        precision=precision,
        kv_cache_dtype=kv_cache_dtype,
        num_parameters=num_parameters,
        backend=backend,
        fused=fused,
        experts=experts,
        adapters=added,
        linears={name: count for name, count in linears.items() if count},
    )


def _has_bfloat16() -> bool:
    """Of chips other than Linux's x86-64 ones it is not known, and believed."""
    return chip_has(["avx512_bf16"]) or not chip_has([])


def _stored_precision(path: Path, stored: QuantizationConfig, quantize: str) -> str:
    if quantize not in ("auto", stored.precision):
        raise ModelLoadError(
            f"quantize is {quantize!r}, but {path} is stored in {' and '.join(stored.precisions)}, and is served so; "
            "leave quantize at 'auto', or give the original model.",
            param="quantize",
        )
    return stored.precision


def _stored_kv_cache_dtype(path: Path, stored: QuantizationConfig, asked: str, backend: Backend) -> str:
    if asked != "auto" or stored.own.kv_cache_dtype is None:
        return asked
    if backend.kind == "cpu" and library() is None:
        log.warning(
            "%s was measured with INT8 KV, which on a CPU takes the C kernels (x86-64 with AVX2 or AVX-512, a C compiler); "
            "here its KV is kept as computed",
            path,
        )
        return "none"
    return "int8"


def _num_parameters(module: Any) -> int:
    """Of the model, however many numbers share a word in its file."""
    stored = stored_linears(module).values()
    belonging = {id(parameter) for linear in stored for parameter in linear.parameters()}
    plain: int = sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in belonging)
    biases = sum(linear.out_features for linear in stored if linear.bias is not None)
    return plain + biases + sum(linear.out_features * linear.in_features for linear in stored)


def _compute(
    module: Any, input_ids: Tensor, positions: Tensor, rows: Tensor, context: attention_hook.StepContext
) -> Tensor:
    with kept_states(module) if context.keeps_states else nullcontext() as kept:
        logits: Tensor = module(
            input_ids=input_ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=rows,
            penstock=context,
        ).logits
    if kept is not None:
        context.states = kept[0][0, rows]
    return logits[0]


def _from_pretrained(path: Path, dtype: str, stored: QuantizationConfig | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    attention_hook.register()
    try:
        settings = {"dtype": "auto" if dtype == "auto" else DTYPES[dtype], "output_loading_info": True}
        if stored is not None:
            config = AutoConfig.from_pretrained(path)
            config.quantization_config = extension(stored, path)
            settings["config"] = config
        with quietly():
            try:
                module, report = AutoModelForCausalLM.from_pretrained(
                    path, attn_implementation=attention_hook.NAME, **settings
                )
            except KeyError as error:
                if error.args != (attention_hook.NAME,):
                    raise
                # It has a class per implementation. Of its eager one, attention may be seen from outside.
                module, report = AutoModelForCausalLM.from_pretrained(
                    path, attn_implementation="eager", **settings
                )
                module.config._attn_implementation = attention_hook.NAME  # so that no masks are made
    except ModelLoadError:
        raise
    except Exception as error:  # broken files raise whatever their readers choose: safetensors, pickle, json
        raise ModelLoadError(
            f"{path} cannot be loaded as a causal language model: {_first_line(error)}"
        ) from error
    refuse_missing_weights(path, module, report)
    if stored is not None:
        check_values(module, path)
    return module


@torch.inference_mode()
def _load_adapters(module: Any, folders: Mapping[str, str]) -> Adapters:
    adapters = Adapters()
    for name, folder in folders.items():
        adapters.load(module, name, folder)
    if folders:
        adapters.check_reached(lambda: _compute_two_tokens(module, attention_hook.ProbeContext()), 2)
    return adapters


@torch.inference_mode()
def _probe_layers(module: Any, config: Any) -> tuple[attention_hook.ProbeContext, int]:
    """Tiny forward passes: what every layer stores, for how many tokens; refuses by name what we would not compute."""
    name = type(module).__name__
    feed_positions(module)
    keep_logits(module)
    kinds = _attention_types(module)
    try:
        probe = _reach_attention(module)
        if _attention_types(module) != kinds:
            raise ModelLoadError(
                f"{name} attends in another way to few tokens than to many, of which Penstock computes the first only; "
                "serve this model with another engine."
            )
        context_length = _context_length(config)
        _refuse_wrong_windows(name, config, context_length, probe)
        _refuse_wrong_masks(name, context_length, probe)
        if config.num_hidden_layers not in (probe.num_layers, len(probe.layers)):
            raise ModelLoadError(
                f"{name} has {config.num_hidden_layers} layers, of which {probe.num_layers} use attention over a KV cache; "
                "layers with other state (recurrent, convolutional, shared KV) are not supported."
            )
        if not module._supports_attention_backend:  # else transformers itself answers for these
            _refuse_other_state(module)
            _refuse_own_positions(module)
    except ModelLoadError:
        raise
    except TypeError as error:
        raise ModelLoadError(f"{name} does not pass our context down to attention: {error}") from error
    except Exception as error:  # whatever the model's own code raises
        raise ModelLoadError(f"{name} cannot compute two tokens: {_first_line(error)}") from error
    return probe, context_length


def _attention_types(module: Any) -> list[object]:
    """Big Bird gives up its sparse attention once it is shown a short prompt."""
    return [getattr(part, "attention_type", None) for part in module.modules()]


def _reach_attention(module: Any) -> attention_hook.ProbeContext:
    """Sees to it that our attention is called, in one of the ways that there are; returns what it was called with."""
    probe = attention_hook.ProbeContext()
    try:
        _compute_two_tokens(module, probe)
    except TypeError as error:
        if "penstock" not in str(error):
            raise
        # Nemotron's layers give their attention no more than they know; others call no attention function at all.
        called = module._supports_attention_backend or attention_hook.attention_forward.__name__ in str(error)
        if not (attention_hook.carry if called else attend_inline)(module):
            raise
        probe = attention_hook.ProbeContext()
        _compute_two_tokens(module, probe)
    if not probe.layers and attend_inline(module):
        probe = attention_hook.ProbeContext()
        _compute_two_tokens(module, probe)
    if not probe.layers:
        raise ModelLoadError(
            f"{type(module).__name__} computes attention by itself, out of reach of Penstock's paged KV; "
            "serve it with another engine."
        )
    return probe


def _compute_two_tokens(
    module: Any,
    probe: attention_hook.ProbeContext,
    tokens: tuple[int, int] = (0, 0),
    positions: tuple[int, int] = (0, 1),
) -> torch.Tensor:
    """-> logits [2, vocab_size]"""
    with attention_hook.masks_with_rules():
        logits: torch.Tensor = module(
            input_ids=torch.tensor([tokens], device=module.device),
            position_ids=torch.tensor([positions], device=module.device),
            use_cache=False,
            logits_to_keep=torch.arange(2, device=module.device),
            penstock=probe,
        ).logits[0]
    return logits


def _refuse_other_state(module: Any) -> None:
    """Where each row attends to itself only, the first may not be felt by the second."""
    first, other = (
        _compute_two_tokens(module, attention_hook.ProbeContext(alone=True), tokens)
        for tokens in ((1, 3), (2, 3))
    )
    changes = (first - other).abs().amax(dim=-1)
    if not changes[0] or changes[1] > OF_ROUNDING * changes[0]:
        raise ModelLoadError(
            f"{type(module).__name__} passes something from token to token beside attention; "
            "layers with other state (recurrent, convolutional) are not supported."
        )


def _refuse_own_positions(module: Any) -> None:
    near, far = (
        _compute_two_tokens(module, attention_hook.ProbeContext(), (1, 3), positions)[1]
        for positions in ((0, 1), (0, 3))
    )
    if torch.equal(near, far):
        raise ModelLoadError(
            f"{type(module).__name__} does not let its positions be told, as rows of several sequences in a batch need; "
            "serve this model with another engine."
        )


def _refuse_other_layers(name: str, config: Any) -> None:
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in SERVED_LAYER_TYPES:
            raise ModelLoadError(
                f"{name} has a layer of type {kind!r}; Penstock computes only {', '.join(SERVED_LAYER_TYPES)}."
            )


def _refuse_wrong_windows(
    name: str, config: Any, context_length: int, probe: attention_hook.ProbeContext
) -> None:
    """What a layer may see comes to us as an argument for windows only."""
    kinds = getattr(config, "layer_types", None)
    for layer, kind in enumerate(kinds or ()):
        if layer in probe.layers and kind == "sliding_attention" and layer not in probe.windowed:
            raise ModelLoadError(f"{name} does not tell attention about the sliding window of layer {layer}.")
    window = getattr(config, "sliding_window", None)
    # Phimoe has it in its mask, Moshi in its cache. One as long as the context is none.
    if window and not kinds and not probe.windowed and window < context_length:
        raise ModelLoadError(
            f"{name} has a sliding window of {window} tokens, of which it does not tell attention; "
            f"it can be served where max_position_embeddings in its config.json is at most {window}."
        )


def _refuse_wrong_masks(name: str, context_length: int, probe: attention_hook.ProbeContext) -> None:
    for layer, rule in probe.rules.items():
        window = probe.arguments[layer].sliding_window
        if not attention_hook.is_computed(rule, window, context_length):
            told = "no sliding window" if window is None else f"a sliding window of {window} tokens"
            raise ModelLoadError(
                f"{name} masks what layer {layer} sees by another rule than attention is told, {told}; "
                "serve this model with another engine."
            )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _context_length(config: Any) -> int:
    """The model's own, short of where attention would end at a chunk's beginning, or rotary frequencies would depend on
    the longest sequence in the batch."""
    length = _stated_length(config)
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        length = _shorter(config, length, config.attention_chunk_size, "one of its chunks of attention ends")
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        original = parameters.get("original_max_position_embeddings") or length
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            length = _shorter(config, length, original, "its rotary frequencies change")
    return length


def _shorter(config: Any, length: int, limit: int, why: str) -> int:
    if limit < length:
        log.warning("%s is served up to %d tokens, where %s", config.model_type, limit, why)
    return min(length, limit)


def _stated_length(config: Any) -> int:
    for name in (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "seq_length",
        "max_target_positions",
    ):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    raise ModelLoadError(
        f"{type(config).__name__} names no context length; add max_position_embeddings to the model's config.json."
    )


def _eos_token_ids(module: Any) -> list[int]:
    eos = module.generation_config.eos_token_id
    if eos is None:
        eos = getattr(module.config.get_text_config(), "eos_token_id", None)
    if eos is None:
        return []
    return list(eos) if isinstance(eos, list | tuple) else [eos]
