"""Tries every causal language model that transformers defines, tiny and random, and writes `docs/models.md`.

    python bench/model_sweep.py                       all of them, resumed where a former run ended
    python bench/model_sweep.py --only GlmForCausalLM  one or some, anew
    python bench/model_sweep.py --write-table          docs/models.md from the results at hand

Each architecture gets a configuration of a few narrow layers, one of every kind that its defaults have, and random float32
weights. What loads must give, through the engine's paged KV, chunked prompts, batch-mates, preemption and prefix hits, the
greedy tokens of the model's own eager attention and their log-probabilities. Each runs in a process of its own, so that a
crash is one row. Results are kept in `bench/results/models.json`.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import msgspec
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from penstock.errors import ModelLoadError
from penstock.scheduler import Engine, EngineConfig, SamplingParams

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results/models.json"
TABLE = ROOT / "docs/models.md"

VOCAB_SIZE = 320
NEW_TOKENS = 32
MAX_MODEL_LEN = 128
WINDOW = 24  # smaller than every context
# Float32 sums in another order move logits of models this small by less; a wrong mask or position moves them by far more.
LOGPROB_TOLERANCE = 2e-3
# Below this many different tokens an answer shows little, and other weights are drawn.
DISTINCT_TOKENS = 6
DRAWS = 4

WORKS, REFUSED, DIFFERS, FAILS, UNTRIED = "works", "refused", "differs", "fails", "untried"

# By field name, where a configuration has the field or its own name for it. Widths are multiples of 8, which transformers
# needs for its products of experts.
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "dff": 96,
    "ffn_hidden_size": 96,
    "dense_intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "moe_intermediate_size": 48,
    "expert_ffn_hidden_size": 48,
    "shared_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "shared_experts_intermediate_size": 48,
    "num_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "kv_channels": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "o_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 24,
    "rotary_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 2,
    "topk_group": 1,
    "num_shared_experts": 1,
    "n_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "decoder_sparse_step": 1,
    "num_mtp_layers": 0,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "max_seq_len": 256,
    "sliding_window": WINDOW,
    "attention_window_size": WINDOW,
    "local_attention": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "attention_chunk_size": WINDOW,
    "index_topk": WINDOW,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_block_size": 16,
    "index_topk_blocks": 1,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "pronunciation_embed_dim": 16,
    "shape_embed_dim": 16,
    "router_hidden_size": 16,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_heads": 8,
    "lru_width": 64,
    "query_pre_attn_scalar": 16,
    # Large, so that the largest logit stands out and greedy decoding is no matter of rounding.
    "initializer_range": 0.3,
    # Tied, many a random model repeats its last token for ever.
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "cls_token_id": 1,
    "pad_token_id": 0,
    # Encoders that may be decoders are tried as such: as encoders they are not causal.
    "is_decoder": True,
}
# Fields that give every layer its kind: one layer of each kind is kept.
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "indexer_types")
# What the rules above cannot know, by architecture.
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
OVERRIDES: dict[str, dict[str, Any]] = {
    "CohereCompassForCausalLM": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "FalconH1ForCausalLM": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1},
    "GPTNeoForCausalLM": {
        "num_hidden_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 24,
    },
    "Gemma3nForCausalLM": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
    },
    # With more cycles rounding grows until the float32 model differs from itself in float64 by 0.9 in log-probabilities.
    "HrmTextForCausalLM": {"H_cycles": 1, "L_cycles": 2},
    # Published ones have both kinds of layers, unlike the defaults.
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    # Attention in chunks is served up to the first one's end.
    "Llama4ForCausalLM": {"attention_chunk_size": MAX_MODEL_LEN},
    "LongcatFlashForCausalLM": {"head_dim": 8},
    "MllamaForCausalLM": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    # Its own mask or cache applies a window that attention is not told of; published models have one of full length.
    "MoshiForCausalLM": {"sliding_window": 256},
    "PhimoeForCausalLM": {"sliding_window": 256},
    "XmodForCausalLM": {"default_language": "en_XX"},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    # After a comma: a row beside the defaults' for published models of other kinds.
    "BigBirdForCausalLM, full attention": {"attention_type": "original_full"},
    "GraniteMoeHybridForCausalLM, attention only": {"layer_types": ["full_attention"] * 2},
}


def architectures() -> list[str]:
    """The names of all rows: every class that transformers offers for causal language modelling, and the variants."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *OVERRIDES})


def class_of(row: str) -> Any:
    return getattr(transformers, row.partition(",")[0])


def tiny_config(config_class: type, overrides: dict[str, Any]) -> Any:
    """A configuration of `config_class` by the rules of SMALL and KINDS, then `overrides`."""
    defaults = config_class()
    own_names = getattr(config_class, "attribute_map", {})
    fields = {field.name for field in dataclasses.fields(config_class)}
    settings: dict[str, Any] = {}
    for name, value in SMALL.items():
        field = own_names.get(name, name)
        if field in fields:
            settings[field] = value
    if (
        "kv_lora_rank" in fields
    ):  # keys and values come from one latent vector, so that every head has its own
        settings["num_key_value_heads"] = SMALL["num_attention_heads"]
    kinds = {name: list(dict.fromkeys(_given(defaults, name) or [])) for name in KINDS if name in fields}
    num_layers = overrides.get("num_hidden_layers") or max(2, *(len(kind) for kind in kinds.values()), 0)
    for name, kind in kinds.items():
        if kind:
            settings[name] = [kind[layer % len(kind)] for layer in range(num_layers)]
    settings[own_names.get("num_hidden_layers", "num_hidden_layers")] = num_layers
    for name in getattr(config_class, "sub_configs", None) or {}:
        part = _given(defaults, name)
        if part is not None and name not in overrides:
            settings[name] = tiny_config(type(part), {})
    return config_class(**(settings | overrides))


def _given(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # some configurations answer for single layers only
        return None


def make_model(row: str, folder: Path, draw: int) -> Any:
    """Save a random model for the row; returns it for reference, with eager attention."""
    torch.manual_seed(draw)
    model_class = class_of(row)
    config = tiny_config(model_class.config_class, OVERRIDES.get(row, {}))
    model = model_class._from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # those too that start as zeros or ones: norms, biases, sinks
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.generation_config.eos_token_id = None
    model.generation_config.forced_eos_token_id = (
        None  # else Bart's last token is the end, whatever comes out
    )
    model.save_pretrained(folder)
    if outer := _outer_config(model_class):
        outer(text_config=config.to_dict(), architectures=[model_class.__name__]).save_pretrained(folder)
    return model.eval()


def _outer_config(model_class: Any) -> Any:
    """Published files of some text models are configured as a part of what also sees or hears; None for all others."""
    types = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == model_class.__name__]
    found = [CONFIG_MAPPING[kind] for kind in types]
    if model_class.config_class in found:
        return None
    return next((outer for outer in found if "text_config" in outer.sub_configs), None)


def prompts_for(rng: random.Random) -> list[list[int]]:
    """Two share a beginning of several blocks; lengths differ around block boundaries."""
    shared = [rng.randrange(3, VOCAB_SIZE) for _ in range(48)]
    prompts = [shared + [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 40))] for _ in range(2)]
    return [*prompts, [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 30))]]


@torch.inference_mode()
def expected(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Tokens by `generate`, and their log-probabilities."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = out.sequences[0, len(prompt) :].tolist()
    logprobs = torch.log_softmax(torch.cat(out.logits).float(), dim=-1)
    return tokens, logprobs[torch.arange(len(tokens)), tokens]


def serve(
    engine: Engine, prompts: list[list[int]], rng: random.Random
) -> list[tuple[list[int], torch.Tensor]]:
    """All prompts at once, under budgets drawn anew for every step."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    while engine.has_work():
        engine.scheduler.max_num_batched_tokens = rng.choice([4, 5, 7, 16, 33, 64])
        for delta in engine.step():
            if delta.finish_reason not in (None, "length"):
                raise RuntimeError(f"{delta.finish_reason}: {delta.error}")
            number = int(delta.request_id)
            tokens[number] += delta.token_ids
            logprobs[number] += [entry.logprob for entry in delta.logprobs]
        engine.check()
    return [(mine, torch.tensor(theirs)) for mine, theirs in zip(tokens, logprobs, strict=True)]


def try_model(row: str) -> dict[str, str]:
    """The `result` of a row, and a `note` of why, or of what took part."""
    rng = random.Random(row)
    prompts = prompts_for(rng)
    for draw in range(DRAWS):
        with tempfile.TemporaryDirectory() as folder:
            outcome = _try_draw(row, Path(folder), draw, prompts, rng)
        if outcome is not None:
            return {"result": outcome[0], "note": outcome[1]}
    return {"result": UNTRIED, "note": "random weights only repeat themselves"}


def _try_draw(
    row: str, folder: Path, draw: int, prompts: list[list[int]], rng: random.Random
) -> tuple[str, str] | None:
    """None if these weights show nothing."""
    try:
        reference = make_model(row, folder, draw)
    except Exception as error:
        return UNTRIED, f"no tiny model: {_in_a_line(error)}"
    settings = EngineConfig(
        model=str(folder),
        quantize="none",
        max_model_len=MAX_MODEL_LEN,
        kv_cache_tokens=MAX_MODEL_LEN,  # a single sequence of full length, and three want to run
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=64,
    )
    try:
        engine = Engine(settings)
    except ModelLoadError as error:
        return REFUSED, str(error).replace(str(folder), "The model")
    except Exception as error:
        return FAILS, f"at load: {_in_a_line(error)}"
    try:
        wanted = [expected(reference, prompt) for prompt in prompts]
    except Exception as error:
        return UNTRIED, f"transformers' generate fails: {_in_a_line(error)}"
    if max(len(set(tokens)) for tokens, _ in wanted) < DISTINCT_TOKENS:
        return None
    try:
        seen = _watch(engine)
        for _ in range(2):  # the second time over prefix hits
            for got, want in zip(serve(engine, prompts, rng), wanted, strict=True):
                if difference := _difference(got, want):
                    return DIFFERS, difference
        if not (engine.stats.preemptions and engine.stats.prefix_hits):
            return FAILS, "nothing was preempted, or nothing found in the prefix cache"
        return WORKS, ", ".join(sorted(seen) + _quantized(settings, prompts))
    except Exception as error:
        return FAILS, _in_a_line(error)


def _difference(got: tuple[list[int], torch.Tensor], want: tuple[list[int], torch.Tensor]) -> str:
    if got[0] != want[0]:
        return f"from token {[a == b for a, b in zip(got[0], want[0], strict=True)].index(False)} on"
    error = float((got[1] - want[1]).abs().max())
    return "" if error <= LOGPROB_TOLERANCE else f"log-probabilities by {error:.2g}"


def _watch(engine: Engine) -> set[str]:
    """A set that fills with what attention is asked for from now on."""
    cache, seen = engine.runner.kv_cache, set()
    attend = cache.attend

    def watched(layer: int, query: Any, key: Any, value: Any, batch: Any, **asked: Any) -> Any:
        if asked["sliding_window"]:
            seen.add("sliding window")
        if asked["softcap"]:
            seen.add("soft cap")
        if asked["sinks"] is not None:
            seen.add("sinks")
        if key.shape[-1] != value.shape[-1]:
            seen.add("keys and values of different size")
        return attend(layer, query, key, value, batch, **asked)

    cache.attend = watched
    return seen


def _quantized(settings: EngineConfig, prompts: list[list[int]]) -> list[str]:
    """What the experts become in W8A8, if there are any; raises if that cannot be served at all."""
    engine = Engine(msgspec.structs.replace(settings, quantize="w8a8"))
    serve(engine, prompts, random.Random(0))
    experts = engine.runner.model.experts
    return [f"experts in {'floats' if kernel == 'torch' else 'INT8'} with w8a8" for kernel in sorted(experts)]


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def table(rows: dict[str, dict[str, str]]) -> str:
    """docs/models.md"""
    classes = {row: found["result"] for row, found in rows.items() if "," not in row}
    backed = [row for row in classes if class_of(row)._supports_attention_backend]
    counts = {
        result: list(classes.values()).count(result) for result in (WORKS, REFUSED, UNTRIED, DIFFERS, FAILS)
    }
    lines = [
        HEAD.format(
            version=transformers.__version__,
            classes=len(classes),
            backed=len(backed),
            tokens=NEW_TOKENS,
            tolerance=LOGPROB_TOLERANCE,
            **counts,
        )
    ]
    lines += [table_line(row, found) for row, found in sorted(rows.items())]
    return "\n".join(lines) + "\n"


def table_line(row: str, found: dict[str, str]) -> str:
    note = found["note"].replace("|", "\\|").replace("<", "`<").replace(">", ">`")
    return f"| {row} | {found['result']} | {note} |"


HEAD = """# Models

Of the {classes} causal language models that transformers {version} defines, {backed} let another function compute their
attention. **{works} are served with the greedy tokens of their own eager attention**; {refused} are refused at load, by
name and with the reason; {differs} load and differ, {fails} fail otherwise; {untried} could not be tried.

This page is written by `python bench/model_sweep.py`, which makes each of them tiny and random, in float32, with one layer
of every kind that its configuration has by default, windows included, and serves it with chunked prompts, batch-mates,
preemption and prefix hits: three prompts twice, {tokens} tokens each, log-probabilities within {tolerance:g}. Notes say
what took part. Llama 4 is served as far as its first chunk of attention reaches, decoders of encoder-decoder models without
their encoder. What no default configuration has is not tried, nor are other modalities than text.

| Architecture | Result | Note |
|---|---|---|"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows to try anew")
    parser.add_argument("--seconds", type=float, default=120, help="limit of each row")
    parser.add_argument("--write-table", action="store_true", help="try nothing")
    args = parser.parse_args()
    rows: dict[str, dict[str, str]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = architectures()
    if unknown := [name for name in args.only if name not in known]:
        parser.error(
            f"--only names {unknown[0]!r}; transformers {transformers.__version__} has no such model."
        )
    missing = [] if args.write_table else [name for name in known if name not in rows]
    for name in args.only or missing:
        rows[name] = _in_a_process(name, args.seconds)
        print(f"{name:44} {rows[name]['result']:8} {rows[name]['note']}", flush=True)
        RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
    TABLE.write_text(table(rows))
    return int(any(found["result"] in (DIFFERS, FAILS) for found in rows.values()))


def _in_a_process(name: str, seconds: float) -> dict[str, str]:
    """Forked, with all that is heavy already imported."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(name, theirs))
    child.start()
    theirs.close()
    row = {"result": FAILS, "note": f"not done within {seconds:g} s"}
    if ours.poll(seconds):
        try:
            row = ours.recv()
        except EOFError:
            row = {"result": FAILS, "note": "the process crashed"}
    child.kill()
    child.join()
    return row


def _child(name: str, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        pipe.send(try_model(name))
    pipe.close()


if __name__ == "__main__":
    sys.exit(main())
