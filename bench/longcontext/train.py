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
from data import RECALLED, TEXT, FactWriter, Library, needle, training_sequence
from tokenizers import Tokenizer
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = ROOT / "models" / "builtin"
CONTEXT = 16384
SEED = 5
# (until this share of the time, sequence length, sequences a step, mean tokens between facts)
PHASES = ((0.62, 512, 16, 8.0), (0.74, 1024, 8, 20.0), (0.86, 4096, 2, 60.0), (1.0, 16384, 1, 120.0))
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
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
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
def place_previous_token_heads(model: Any, sharpness: float = 6.0, pairs: int = 16) -> None:
    """Let the first two heads look one and two tokens back, by biases alone: the half of finding a fact again that training
    finds last. Keys of a constant bias, rotated, score a query's bias by the cosine of their distance.
    """
    attention = model.model.layers[0].self_attn
    size = attention.head_dim
    frequencies = model.model.rotary_emb.inv_freq[:pairs]
    for projection, heads in ((attention.q_proj, 2), (attention.k_proj, 1)):
        projection.weight[: heads * size] *= 0.1
        projection.bias[: heads * size] = 0.0
    attention.k_proj.bias[:pairs] = sharpness
    for head in range(2):
        start, back = head * size, head + 1
        attention.q_proj.bias[start : start + pairs] = sharpness * torch.cos(back * frequencies)
        attention.q_proj.bias[start + size // 2 : start + size // 2 + pairs] = -sharpness * torch.sin(
            back * frequencies
        )


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
        prompt, value = needle(rng, text, writer, length - len([0] * 2), (index + 0.5) / count, 8)
        ids = torch.tensor([prompt + value])
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
    library, writer = Library(tokenizer), FactWriter(tokenizer)
    print(f"{len(library.trained)} tokens to train on, {len(library.held_out)} held out", flush=True)
    model = LlamaForCausalLM(config(tokenizer.get_vocab_size()))
    place_previous_token_heads(model)
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
