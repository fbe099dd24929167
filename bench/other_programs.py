"""The same folder in Penstock, in transformers and in vLLM: perplexity on the same tokens.

    PYTHONPATH=models python -m recipe.texts --data DATA --out TEXTS
    penstock quantize builtin-large --scheme w4a16 --group-size 32 --data TEXTS/train.jsonl --output w4a16
    python bench/other_programs.py models/builtin-large w4a16 --text TEXTS/pages.jsonl

Tokens that count are those that a model would write (answers, with what ends them). transformers computes in float32 with
the `compressed-tensors` package, vLLM in bf16 in the environment of `bench/peers` (installed if it is not there); of vLLM
the kernels that it chose are printed, too.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

BENCH = Path(__file__).parent
ROWS = 512
FOUND = "perplexity:"
Text = tuple[list[int], list[bool]]
"""Ids, and of each whether it counts."""


def in_penstock(folder: str, texts: list[Text]) -> float:
    from penstock.compress.evaluate.scorers import ServedScorer
    from penstock.models.loading import load_model

    return perplexity_of(ServedScorer(load_model(folder, device="cpu"), folder), texts)


def in_transformers(folder: str, texts: list[Text]) -> float:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

    from penstock.compress.evaluate.scorers import PlainScorer

    is_quantized = hasattr(AutoConfig.from_pretrained(folder), "quantization_config")
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if is_quantized else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    return perplexity_of(PlainScorer(model.eval(), folder), texts)


def perplexity_of(scorer, texts: list[Text]) -> float:
    import torch

    sums = count = 0.0
    for ids, counts in texts:
        following, row = ids[1:], 0
        for logits in scorer.logits(ids, ROWS):
            wanted = torch.tensor(following[row : row + len(logits)])
            some = torch.tensor(counts[1:][row : row + len(logits)])
            losses = torch.nn.functional.cross_entropy(logits[: len(wanted)], wanted, reduction="none")
            sums, count, row = (
                sums + losses[some].double().sum().item(),
                count + some.sum().item(),
                row + len(logits),
            )
    return math.exp(sums / count)


def in_vllm(folder: str, texts: list[Text]) -> float:
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder, dtype="bfloat16", max_model_len=2048, enforce_eager=True, enable_prefix_caching=False
    )
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    losses = []
    for (ids, counts), found in zip(
        texts, engine.generate([{"prompt_token_ids": ids} for ids, _ in texts], params), strict=True
    ):
        told = found.prompt_logprobs
        losses += [-told[at][ids[at]].logprob for at in range(1, len(ids)) if counts[at]]
    return math.exp(sum(losses) / len(losses))


PROGRAMS: dict[str, Callable[[str, list[Text]], float]] = {
    "penstock": in_penstock,
    "transformers": in_transformers,
    "vllm": in_vllm,
}


def tokens(file: Path, model: str) -> list[Text]:
    from penstock.compress.texts import read_examples, tokenize
    from penstock.models.tokenizer import Tokenizer

    texts = tokenize(Tokenizer.load(model), read_examples(file), max_tokens=2000)
    return [(text.ids, text.learn) for text in texts]


def asked(program: str, folder: Path, texts: Path) -> tuple[str, list[str]]:
    """What a process of its own found, or why it found nothing; and the kernels that it says it uses."""
    python = sys.executable
    if program == "vllm":
        sys.path.insert(0, str(BENCH / "peers"))
        from environments import VLLM

        VLLM.prepare()
        python = str(VLLM.python)
    command = [python, __file__, str(folder), "--text", str(texts), "--in", program]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=BENCH)
    told = done.stdout + done.stderr
    kernels = sorted(set(re.findall(r"\b\w+LinearKernel\b", told)))
    found = re.search(rf"^{FOUND} (\S+)$", done.stdout, re.MULTILINE)
    return (f"{float(found[1]):.4f}" if found else told.strip().splitlines()[-1]), kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="the first names the tokenizer")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--in", dest="program", choices=PROGRAMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.program:
        texts = [(ids, counts) for ids, counts in json.loads(args.text.read_text())]
        print(FOUND, PROGRAMS[args.program](str(args.folders[0]), texts))
        return
    texts = tokens(args.text, str(args.folders[0]))
    print(f"{len(texts)} texts, {sum(sum(counts[1:]) for _, counts in texts)} tokens that count")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.json"
        file.write_text(json.dumps(texts))
        for model in args.folders:
            for program in PROGRAMS:
                found, kernels = asked(program, model.resolve(), file)
                print(f"{model.name:<20} {program:<14} {found:<10} {' '.join(kernels)}", flush=True)


if __name__ == "__main__":
    main()
