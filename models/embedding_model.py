"""A BERT encoder that turns token ids into unit vectors: INT8 products, the rest float32, several texts in one forward.

Texts lie behind each other in one flat row of tokens: no padding is computed, and each attends to itself alone. On one
thread, which is what it is run on, a text's vector is the same to the last bit whatever texts lie beside it: INT8
products are exact sums, and all else works on rows or on one text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelLoadError
from .encoder_weights import WEIGHTS, EncoderWeights, Precision
from .fingerprint import fingerprint
from .json_file import read_json_object
from .native_encoder import native_encoder
from .torch_encoder import TorchEncoder


class EmbeddingModel:
    """One loaded encoder, computed by the C library where that serves and by torch where not.

    Attributes:
        dims: length of a vector.
        max_tokens: longest text, special tokens included.
        vocab_size: ids are below it.
        fingerprint: changes with weights, tokenizer, pooling, precision and the way of computing.
    """

    def __init__(self, folder: Path, precision: Precision = "w8a8") -> None:
        """Raises ModelLoadError, naming what it cannot compute."""
        config = read_json_object(folder / "config.json")
        _refuse_others(folder, config)
        weights = EncoderWeights.read(folder, config, precision)
        self._encode = native_encoder(weights) or TorchEncoder(weights)
        self.dims: int = config["hidden_size"]
        self.vocab_size: int = config["vocab_size"]
        self.max_tokens = _max_tokens(folder, config)
        self.fingerprint = fingerprint(
            folder, self._encode.revision, precision, weights.pooling.kind, str(self.max_tokens)
        )

    def embed(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Texts of 1 to `max_tokens` ids each, special tokens included -> [n, dims] float32 of length 1."""
        if not token_ids:
            return torch.empty(0, self.dims)
        assert all(1 <= len(ids) <= self.max_tokens for ids in token_ids)
        return self._encode(token_ids)


def _refuse_others(folder: Path, config: dict[str, Any]) -> None:
    wanted = {"model_type": ("bert",), "hidden_act": ("gelu",), "position_embedding_type": ("absolute", None)}
    for name, values in wanted.items():
        if config.get(name) not in values:
            raise ModelLoadError(
                f"{folder}: {name} is {config.get(name)!r}; embedding models must be BERT encoders with "
                f"{name} {values[0]!r}, such as all-MiniLM-L6-v2.",
                param="embedding_model",
            )
    if not (folder / WEIGHTS).is_file():
        raise ModelLoadError(f"{folder} has no {WEIGHTS}.", param="embedding_model")


def _max_tokens(folder: Path, config: dict[str, Any]) -> int:
    """What it was trained on, where the folder says so, and never more than it has positions for."""
    most: int = config["max_position_embeddings"]
    trained = read_json_object(folder / "sentence_bert_config.json").get("max_seq_length")
    return min(most, trained) if isinstance(trained, int) and trained > 2 else most
