"""Trains the byte-level BPE tokenizer on the training mixture, and writes it with the chat template.

Digits are single tokens, so that the model can copy a port or a size it was given. All 256 bytes are in the
vocabulary: any text round-trips.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .chat import END, PAD, SPECIAL_TOKENS, TEMPLATE
from .corpus import Corpus

VOCAB_SIZE = 4096
MAX_LENGTH = 2048


def train(texts: Iterator[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "extra_special_tokens": list(SPECIAL_TOKENS[2:]),
        "add_bos_token": False,
        "model_max_length": MAX_LENGTH,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with command_examples.jsonl.gz")
    parser.add_argument("--newcomer", type=Path, default=Path(__file__).parent / "newcomer")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the tokenizer to")
    parser.add_argument("--examples", type=int, default=60_000)
    args = parser.parse_args()
    corpus, rng = Corpus(args.data, args.newcomer, newcomer_share=0.35), random.Random(0)

    def texts() -> Iterator[str]:
        for _ in range(args.examples):
            for pair in corpus.sample(rng).pairs:
                yield pair.question
                yield pair.answer

    tokenizer = train(texts())
    save(tokenizer, args.out)
    print(f"{tokenizer.get_vocab_size()} tokens from {len(corpus.rows)} rows and {len(corpus.tasks)} tasks")


if __name__ == "__main__":
    main()
