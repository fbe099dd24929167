"""Trains the built-in model from scratch on a CPU, for a budget of minutes, and survives interruption.

The schedule runs on counted training time: the sum of step times, where a step of over 30 s (the process was stopped,
or the machine slept) counts as none. So a shared machine changes how much is learnt, never how it ends: the learning
rate always reaches zero. Start it again with the same `--run` to go on from the last checkpoint; data and `--minutes`
may have changed.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from .batches import IGNORE, Batch, chunk, group, long_batch, tokenize
from .chat import END, PAD, Conversation, Pair
from .corpus import Corpus, answer_for

GAP_SECONDS = 30.0
SEED = 17
WARMUP, FLAT_UNTIL, LONG_FROM = 0.02, 0.45, 0.93  # as shares of the time budget
MUON_LR, ADAM_LR, WEIGHT_DECAY = 0.006, 0.003, 0.05


def llama_config(tokenizer: Tokenizer) -> LlamaConfig:
    end = tokenizer.token_to_id(END)
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=384,
        num_hidden_layers=4,
        intermediate_size=1024,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def learning_rate(progress: float) -> float:
    """Trapezoid: up, flat, and linearly down to zero at progress 1."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    if progress < FLAT_UNTIL:
        return 1.0
    return max(0.0, (1.0 - progress) / (1.0 - FLAT_UNTIL))


def loss_of(backbone: Any, embedding: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
    """Mean loss over the tokens to be learnt, and their number. Logits are computed for those only: [N, V]."""
    wanted = batch.labels.flatten() != IGNORE
    hidden = backbone(batch.ids).last_hidden_state.flatten(0, 1)[wanted]  # [N, D]
    logits = functional.linear(hidden, embedding.to(hidden.dtype))
    return functional.cross_entropy(logits.float(), batch.labels.flatten()[wanted]), int(wanted.sum())


class Trainer:
    """Owns the model, its two optimizers (Muon for matrices, AdamW for the rest) and the counters."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        self.args = args
        self.tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
        self.corpus = Corpus(args.data, args.newcomer, args.newcomer_share)
        self.model = LlamaForCausalLM(llama_config(self.tokenizer))
        self.backbone: Any = torch.compile(self.model.model, dynamic=True) if args.compile else self.model.model
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.seconds, self.step, self.chunk, self.tokens = 0.0, 0, 0, 0
        self.checkpoint = args.run / "checkpoint.pt"
        if self.checkpoint.exists():
            self.load()

    def load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.seconds, self.step = state["seconds"], state["step"]
        self.chunk, self.tokens = state["chunk"], state["tokens"]

    def save(self) -> None:
        """Writes the checkpoint beside the old one and then takes its place, so that a crash leaves one of them whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "seconds": self.seconds,
            "step": self.step,
            "chunk": self.chunk,
            "tokens": self.tokens,
        }
        torch.save(state, self.checkpoint.with_suffix(".new"))
        os.replace(self.checkpoint.with_suffix(".new"), self.checkpoint)

    def batches(self) -> Iterator[Batch]:
        """An endless stream; towards the end every third batch holds long conversations."""
        while True:
            for batch in chunk(self.corpus, self.tokenizer, SEED, self.chunk, self.args.batch_tokens):
                if self.progress >= LONG_FROM and self.step % 3 == 0:
                    yield long_batch(self.corpus, self.tokenizer, SEED, self.step, self.args.batch_tokens)
                yield batch
            self.chunk += 1

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.args.minutes)

    def held_out_loss(self, pairs: int = 300) -> float:
        """Mean loss per answer token on pages that are never trained on, asked by their plain descriptions."""
        rows = [r for r in self.corpus.held_out if r.source == "tldr"]
        rows = rows[:: max(1, len(rows) // pairs)]
        talks = [
            Conversation((Pair(f"how do I {r.description[0].lower()}{r.description[1:]} with {r.tool}?", answer_for(r, self.corpus.verbs)),))
            for r in rows
        ]
        total, count = 0.0, 0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for batch in group(tokenize(self.tokenizer, talks), self.args.batch_tokens):
                loss, n = loss_of(self.model.model, self.model.model.embed_tokens.weight, batch)
                total, count = total + loss.item() * n, count + n
        return total / count

    def run(self) -> None:
        last_save = last_eval = last_log = self.seconds
        running = None
        stream = self.batches()
        while self.progress < 1.0:
            started = time.monotonic()
            rate = learning_rate(self.progress)
            for optimizer, base in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
                for parameters in optimizer.param_groups:
                    parameters["lr"] = base * rate
            batch = next(stream)
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = loss_of(self.backbone, self.model.model.embed_tokens.weight, batch)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            if not math.isfinite(value):
                raise SystemExit(f"loss is {value} at step {self.step}; lower MUON_LR ({MUON_LR}) and start again from the checkpoint")
            running = value if running is None else 0.97 * running + 0.03 * value
            spent = time.monotonic() - started
            self.seconds += spent if spent < GAP_SECONDS else 0.0
            self.step, self.tokens = self.step + 1, self.tokens + batch.ids.numel()
            if self.seconds - last_log > 15:
                last_log = self.seconds
                self.log(loss=round(running, 4), rate=round(rate, 4))
            if self.seconds - last_eval > 60 * self.args.eval_minutes:
                last_eval = self.seconds
                self.log(held_out_loss=round(self.held_out_loss(), 4))
            if self.seconds - last_save > 150:
                last_save = self.seconds
                self.save()
        self.save()
        self.log(held_out_loss=round(self.held_out_loss(), 4), finished=True)

    def log(self, **fields: object) -> None:
        counters = {"step": self.step, "seconds": round(self.seconds), "tokens": self.tokens}
        line = json.dumps({"time": time.strftime("%H:%M:%S"), **counters, **fields})
        with (self.args.run / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with command_examples.jsonl.gz")
    parser.add_argument("--newcomer", type=Path, default=Path(__file__).parent / "newcomer")
    parser.add_argument("--newcomer-share", type=float, default=0.5)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoint.pt and log.jsonl")
    parser.add_argument("--minutes", type=float, required=True, help="counted training time, all runs together")
    parser.add_argument("--eval-minutes", type=float, default=5.0)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--compile", action="store_true", help="torch.compile; needs a C++ compiler")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
