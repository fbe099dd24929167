"""A random two-layer BERT with a WordPiece tokenizer, in the layout of sentence-transformers."""

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

MAX_TOKENS = 48


def write_tiny_encoder(
    folder: Path, *, seed: int = 0, max_tokens: int | None = MAX_TOKENS, **config: object
) -> Path:
    """Knows every small letter and digit, alone and inside a word; 64 positions, of which `max_tokens` are used."""
    folder.mkdir(parents=True)
    vocabulary = _write_tokenizer(folder)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    BertModel(BertConfig(**{**settings, **config}), add_pooling_layer=False).save_pretrained(folder)
    if max_tokens is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    write_pooling(folder, "mean_tokens")
    return folder


def write_pooling(folder: Path, mode: str) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **modes}))


def _write_tokenizer(folder: Path) -> int:
    characters = "abcdefghijklmnopqrstuvwxyz0123456789?.,'"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{char}" for char in characters)]
    ids = {token: place for place, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    # As the real files do: the training run's own lengths, which must not matter.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(tokens)
