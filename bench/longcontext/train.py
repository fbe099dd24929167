"""Trains a small model that finds facts again over 16,384 tokens, on a CPU, within a budget of minutes.

    python bench/longcontext/train.py --run RUN --minutes 60 --out bench/longcontext/model

Short sequences come first, with jumps in their positions so that all distances up to the full context are seen (as in
PoSE, Zhu et al. 2023); then longer ones, so that attention learns to stand out among as many keys. The schedule runs on
counted training time; the same command goes on from the last checkpoint.
"""

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from data import RECALLED, TEXT, Library, training_sequence
from tokenizers import Tokenizer
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from penstock.compress.needles import VALUE_TOKENS, FactWriter, hide

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = ROOT / "models" / "builtin"
CONTEXT = 16384
HEAD_DIM = 64
# So slow that all but the first twelve pairs of dimensions can compare content at any distance within the context.
ROPE_THETA = 1e12
FAST_PAIRS = 12
SEED = 5
# (until this share of the time, sequence length, sequences a step, mean tokens between facts)
PHASES = ((0.5, 512, 16, 8.0), (0.68, 1024, 8, 20.0), (0.85, 4096, 2, 60.0), (1.0, 16384, 1, 120.0))
MUON_LR, ADAM_LR, WEIGHT_DECAY = 0.006, 0.004, 0.05
RECALL_WEIGHT = 4.0
TEXT_SHARE = 0.25
CHECKPOINT_SECONDS = 120.0
GAP_SECONDS = 60.0


def config(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=4,
        intermediate_size=640,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=1e-5,
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation="plain_causal",
    )


def plain_causal(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> tuple[Any, None]:
    """Causal attention without the mask that transformers would derive from jumping positions."""
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(module.num_key_value_groups, 1),
        value.repeat_interleave(module.num_key_value_groups, 1),
        is_causal=True,
        scale=kwargs["scaling"],
    )
    return out.transpose(1, 2).contiguous(), None


@torch.no_grad()
def place_induction_heads(model: Any) -> None:
    """Begin with the circuit that finds a fact again, which training alone finds last (Olsson et al. 2022).

    In layer 0 two heads look one and two tokens back, by biases alone: keys of a constant bias, rotated, score a query's
    bias by the cosine of their distance. Each writes what it sees to a subspace of its own. In layer 1 two heads compare
    this token and the one before it with those two subspaces, in the dimensions that RoPE hardly turns, and copy.
    """
    size, half = HEAD_DIM, HEAD_DIM // 2
    basis = torch.linalg.qr(torch.randn(model.config.hidden_size, model.config.hidden_size))[0]
    seen, one_back, two_back = basis[:, :size], basis[:, size : 2 * size], basis[:, 2 * size : 3 * size]
    embedding = model.model.embed_tokens.weight
    for subspace in (one_back, two_back):
        embedding -= embedding @ subspace @ subspace.T

    looking, copying = (layer.self_attn for layer in model.model.layers[:2])
    frequencies = model.model.rotary_emb.inv_freq[:FAST_PAIRS]
    for projection, heads in ((looking.q_proj, 2), (looking.k_proj, 1)):
        projection.weight[: heads * size] *= 0.1
    looking.k_proj.bias[:FAST_PAIRS] = 8.0
    looking.v_proj.weight[:size] = seen.T
    for head, subspace in enumerate((one_back, two_back)):
        start, angles = head * size, (head + 1) * frequencies
        looking.q_proj.bias[start : start + FAST_PAIRS] = 8.0 * torch.cos(angles)
        looking.q_proj.bias[start + half : start + half + FAST_PAIRS] = -8.0 * torch.sin(angles)
        looking.o_proj.weight[:, start : start + size] = 0.04 * subspace

    slow = half - FAST_PAIRS
    for kv_head in range(2):
        query, key = 2 * kv_head * size, kv_head * size
        for rows, start in ((copying.q_proj.weight, query), (copying.k_proj.weight, key)):
            rows[start : start + size] = 0.0
        for dims, asked, held in ((FAST_PAIRS, seen, one_back), (half + FAST_PAIRS, one_back, two_back)):
            coordinates = slice(0, slow) if dims < half else slice(slow, 2 * slow)
            copying.q_proj.weight[query + dims : query + dims + slow] = 2.5 * asked[:, coordinates].T
            copying.k_proj.weight[key + dims : key + dims + slow] = 2.5 * held[:, coordinates].T
        copied = torch.linalg.qr(torch.randn(model.config.hidden_size, size))[0]
        copying.v_proj.weight[key : key + size] = copied.T
        copying.o_proj.weight[:, query : query + size] = 0.1 * copied


def positions(rng: random.Random, length: int) -> list[int]:
    """Increasing positions below CONTEXT with up to four jumps."""
    spare = CONTEXT - length
    cuts = sorted(rng.sample(range(1, length), rng.randrange(5))) if spare else []
    shares = sorted(rng.randrange(spare + 1) for _ in range(len(cuts) + 1)) if spare else [0]
    out, jump = [], 0
    for index in range(length):
        if jump < len(cuts) and index == cuts[jump]:
            jump += 1
        out.append(index + shares[jump])
    return out


def loss_of(
    model: Any, ids: torch.Tensor, position_ids: torch.Tensor, roles: torch.Tensor
) -> tuple[Any, Any, Any]:
    """The weighted loss, and the mean losses of text and of recalled tokens."""
    roles = roles[:, 1:].flatten()
    # The head over 4,096 tokens would be half of the work: a sample of the text teaches as well.
    chosen = (roles == RECALLED) | ((roles == TEXT) & (torch.rand(roles.shape) < TEXT_SHARE))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, position_ids=position_ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[chosen])
    losses = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:].flatten()[chosen], reduction="none")
    recalled = roles[chosen] == RECALLED
    weights = 1.0 + (RECALL_WEIGHT - 1.0) * recalled.float()
    return (
        (losses * weights).sum() / weights.sum(),
        losses[~recalled].mean().detach(),
        losses[recalled].mean().detach(),
    )


@torch.inference_mode()
def retrieval(model: Any, text: list[int], writer: FactWriter, length: int, count: int) -> float:
    """Share of needles among eight distractors whose whole value has the highest score, `count` depths at `length`."""
    rng = random.Random(1)
    found = 0
    for index in range(count):
        needle = hide(rng, text, writer, length - VALUE_TOKENS, (index + 0.5) / count, 8)
        value = needle.value
        ids = torch.tensor([needle.text + needle.question + value])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(
                input_ids=ids, position_ids=torch.arange(ids.shape[1])[None], use_cache=False
            ).last_hidden_state
            best = model.lm_head(hidden[:, -1 - len(value) : -1]).argmax(-1)
        found += best[0].tolist() == value
    return found / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, help="folder for the finished model")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    AttentionInterface.register("plain_causal", plain_causal)
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    library = Library(tokenizer)
    writer = FactWriter(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.get_vocab_size()
    )
    print(f"{len(library.trained)} tokens to train on, {len(library.held_out)} held out", flush=True)
    model = LlamaForCausalLM(config(tokenizer.get_vocab_size()))
    place_induction_heads(model)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    args.run.mkdir(parents=True, exist_ok=True)
    checkpoint = args.run / "checkpoint.pt"
    counted, step = 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        counted, step = state["counted"], state["step"]
    budget, last_saved = 60 * args.minutes, time.monotonic()
    while counted < budget:
        began = time.monotonic()
        progress = counted / budget
        _, length, rows, gap = next(phase for phase in PHASES if progress < phase[0])
        rng = random.Random(f"{SEED} {step}")
        drawn = [training_sequence(rng, library.trained, writer, length, gap) for _ in range(rows)]
        ids, roles = (torch.tensor([sequence[part] for sequence in drawn]) for part in (0, 1))
        jumped = torch.tensor([positions(rng, length) for _ in range(rows)])
        # Up, flat, and linearly down over the second half.
        rate = min(1.0, (step + 1) / 50, max(0.02, 2 * (1 - progress)))
        rows_of_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, lr in zip(rows_of_groups, rates, strict=True):
            group["lr"] = lr * rate
        loss, text_loss, recall_loss = loss_of(model, ids, jumped, roles)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        took = time.monotonic() - began
        counted += took if took < GAP_SECONDS else 0.0
        if step % 10 == 0:
            print(
                f"{counted / 60:5.1f} min  step {step}  length {length}  text {text_loss:.3f}  recall {recall_loss:.3f}"
                f"  {rows * length / took:.0f} tok/s",
                flush=True,
            )
        if time.monotonic() - last_saved > CHECKPOINT_SECONDS or counted >= budget:
            last_saved = time.monotonic()
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "counted": counted,
                    "step": step,
                },
                checkpoint,
            )
            shares = ", ".join(
                f"{n}: {retrieval(model, library.held_out, writer, n, 10):.1f}" for n in (1024, 4096)
            )
            print(f"needles found at {shares}", flush=True)
    if args.out:
        model.to(torch.bfloat16).save_pretrained(args.out)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (args.out / name).write_bytes((TOKENIZER / name).read_bytes())
        print({n: retrieval(model.float(), library.held_out, writer, n, 20) for n in (1024, 4096, 16384)})


if __name__ == "__main__":
    assert math.isclose(PHASES[-1][0], 1.0)
    main()
