"""Trains the built-in model on a CPU or a GPU, from scratch or from a smaller one, for a budget of minutes; survives
interruption.

The schedule runs on counted training time: the sum of step times, where a step of over 30 s (the process was
stopped, or the machine slept) counts as none. So a shared machine changes how much is learnt, never how it
ends: the learning rate always reaches zero. Start it again with the same `--run` to go on from the last
checkpoint; data, `--minutes` and `--decay-minutes` may have changed. The state before the rate began to fall is
kept as `before-decay.pt`: put in the place of `checkpoint.pt`, it is trained on at the full rate.
"""

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from .batches import Batch, chunks, long_batch
from .chat import END, PAD
from .corpus import Corpus
from .grow import grow
from .loss import held_out_loss, loss_of

GAP_SECONDS = 30.0
SEED = 17
WARMUP_SECONDS, WARMUP_SHARE = 60.0, 0.03  # of the time budget; the shorter
LONG_FROM = 0.93  # as a share of the time budget
MUON_LR, ADAM_LR = 0.004, 0.003


def llama_config(tokenizer: Tokenizer, layers: int, attention: str = "eager") -> LlamaConfig:
    end = tokenizer.token_to_id(END)
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=384,
        num_hidden_layers=layers,
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
        attn_implementation=attention,
    )


def learning_rate(seconds: float, budget: float, decay: float) -> float:
    """Trapezoid over counted time: up, flat, and in the last `decay` seconds of `budget` linearly down to zero.

    A `decay` of twice the budget goes from half of the full rate to zero.
    """
    warmup = min(WARMUP_SECONDS, WARMUP_SHARE * budget)
    highest = min(1.0, max(0.0, (budget - seconds) / decay))
    return min(highest, max(seconds / warmup, 0.01))


class Trainer:
    """Owns the model, its two optimizers (Muon for matrices, AdamW for the rest) and the counters."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        self.args = args
        self.budget: float = 60 * args.minutes
        self.decay: float = 60 * args.decay_minutes
        self.tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
        self.corpus = Corpus(args.data, args.newcomer, args.newcomer_share)
        self.device = torch.device(args.device)
        # On short conversations the flash kernel for CPUs took a quarter of a step, plain products a thirtieth.
        attention = "eager" if self.device.type == "cpu" else "sdpa"
        self.model = LlamaForCausalLM(llama_config(self.tokenizer, args.layers, attention)).to(self.device)
        self.backbone: Any = self.model.model
        if args.compile:
            for layer in self.backbone.layers:  # one is compiled, all use it
                layer.compile(dynamic=True)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=MUON_LR, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.seconds, self.step, self.chunk, self.tokens = 0.0, 0, 0, 0
        self.checkpoint = args.run / "checkpoint.pt"
        if self.checkpoint.exists():
            self.load()
        elif args.init:
            start = {k: v for file in args.init.glob("*.safetensors") for k, v in load_file(file).items()}
            self.model.load_state_dict(grow(start, args.layers), strict=False)  # tied head: not in the file
        self.interrupted = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.interrupt)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ends training after the current step, with a checkpoint."""
        self.interrupted = True

    def load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for parameters in self.optimizers[0].param_groups:
            parameters["weight_decay"] = self.args.weight_decay  # may have changed
        self.seconds, self.step = state["seconds"], state["step"]
        self.chunk, self.tokens = state["chunk"], state["tokens"]

    def diverged(self, what: str) -> str:
        return f"{what} at about step {self.step}; lower MUON_LR ({MUON_LR}) and resume"

    def save(self, name: str = "checkpoint.pt") -> None:
        """Writes a new checkpoint, then puts it in the old one's place, so that a crash leaves one whole.

        SystemExit where a weight is no number any more: the old checkpoint stays.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise SystemExit(self.diverged("A weight is no number any more"))
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "seconds": self.seconds,
            "step": self.step,
            "chunk": self.chunk,
            "tokens": self.tokens,
            "layers": self.args.layers,
        }
        path = self.args.run / name
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def batches(self) -> Iterator[Batch]:
        """An endless stream; towards the end every third batch holds long conversations."""
        for batches in chunks(
            self.corpus, self.tokenizer, SEED, self.chunk, self.args.batch_tokens, self.args.workers
        ):
            for batch in batches:
                if self.progress >= LONG_FROM and self.step % 3 == 0:
                    yield long_batch(self.corpus, self.tokenizer, SEED, self.step, self.args.batch_tokens)
                yield batch
            self.chunk += 1

    @property
    def progress(self) -> float:
        return self.seconds / self.budget

    def held_out_loss(self, pairs: int = 300) -> float:
        """The loss on a fixed spread of at most about `pairs` held-out rows."""
        rows = [r for r in self.corpus.held_out if r.source == "tldr"]
        rows = rows[:: max(1, len(rows) // pairs)]
        with torch.autocast(self.device.type, torch.bfloat16):
            return held_out_loss(self.model, self.tokenizer, self.corpus, rows)

    def run(self) -> None:
        last_save = last_eval = last_log = self.seconds
        running, rate, previous = None, 0.0, None
        stream = self.batches()
        while self.progress < 1.0 and not self.interrupted:
            started = time.monotonic()
            rate, before = learning_rate(self.seconds, self.budget, self.decay), rate
            if rate < before == 1.0:
                self.save("before-decay.pt")
            for optimizer, base in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
                for parameters in optimizer.param_groups:
                    parameters["lr"] = base * rate
            batch = next(stream).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss, _ = loss_of(self.backbone, self.model.model.embed_tokens.weight, batch)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            # That of the step before: a GPU works on this one meanwhile.
            value, previous = (loss if previous is None else previous).item(), loss.detach()
            if not math.isfinite(value):
                raise SystemExit(self.diverged(f"The loss is {value}"))
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
        self.log(held_out_loss=round(self.held_out_loss(), 4), finished=not self.interrupted)

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
    parser.add_argument(
        "--init", type=Path, help="model folder to start from, of as many layers as --layers or fewer"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--minutes", type=float, required=True, help="counted time, all runs together")
    parser.add_argument("--decay-minutes", type=float, default=30.0, help="of these, with a falling rate")
    parser.add_argument("--eval-minutes", type=float, default=5.0)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of the matrices")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that write conversations ahead")
    parser.add_argument("--compile", action="store_true", help="torch.compile; needs a C++ compiler")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
