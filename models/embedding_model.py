"""A BERT encoder that turns token ids into unit vectors: INT8 products, the rest float32, several texts in one forward.

Texts lie behind each other in one flat row of tokens: no padding is computed, and each attends to itself alone. On one
thread, which is what it is run on, a text's vector is the same to the last bit whatever texts lie beside it: INT8
products are exact sums, and all else works on rows or on one text.

Reads safetensors by itself: transformers would cost a second of start for six layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from ..errors import ModelLoadError
from ..kernels.cpu.int8_matmul import Int8Weight
from .fingerprint import fingerprint
from .json_file import read_json_object
from .pooling import Pooling

WEIGHTS = "model.safetensors"
# Part of the fingerprint: raise it when the same weights come to give other vectors.
REVISION = "encoder-1"

Precision = Literal["w8a8", "none"]
Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Linear:
    product: Product
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N]"""
        return self.product(x, self.bias)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Linear
    out: _Linear
    attention_norm: _Norm
    up: _Linear
    down: _Linear
    norm: _Norm


class EmbeddingModel:
    """One loaded encoder.

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
        self.pooling = Pooling.of(folder)
        self.dims: int = config["hidden_size"]
        self.vocab_size: int = config["vocab_size"]
        self.max_tokens = _max_tokens(folder, config)
        self.fingerprint = fingerprint(folder, REVISION, precision, self.pooling.kind, str(self.max_tokens))
        self._heads: int = config["num_attention_heads"]
        eps: float = config.get("layer_norm_eps", 1e-12)
        try:
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                read = _Reader(file, precision, eps)
                self._words = read.tensor("embeddings.word_embeddings.weight")
                # Every token is of the first of two segments: its row is added to each position's, once.
                self._positions = (
                    read.tensor("embeddings.position_embeddings.weight")
                    + read.tensor("embeddings.token_type_embeddings.weight")[0]
                )
                self._norm = read.norm("embeddings.LayerNorm")
                self._layers = [
                    _read_layer(read, f"encoder.layer.{n}") for n in range(config["num_hidden_layers"])
                ]
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(f"{folder / WEIGHTS} cannot be read: {error}.") from error

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Texts of 1 to `max_tokens` ids each, special tokens included -> [n, dims] float32 of length 1."""
        if not token_ids:
            return torch.empty(0, self.dims)
        lengths = [len(ids) for ids in token_ids]
        assert min(lengths) >= 1 and max(lengths) <= self.max_tokens
        flat = torch.tensor([token_id for ids in token_ids for token_id in ids])  # [T]
        positions = torch.cat([self._positions[:length] for length in lengths])
        x = self._norm(F.embedding(flat, self._words).float().add_(positions))  # [T, H]
        for layer in self._layers:
            attended = self._attend(layer.qkv(x), lengths)
            x = layer.attention_norm(layer.out(attended).add_(x))
            x = layer.norm(layer.down(F.gelu(layer.up(x))).add_(x))
        pooled = torch.stack([self.pooling(text) for text in torch.split(x, lengths)])
        return F.normalize(pooled, dim=-1)

    def _attend(self, qkv: Tensor, lengths: list[int]) -> Tensor:
        """[T, 3 * H] -> [T, H], each text by itself."""
        out = torch.empty(qkv.shape[0], self.dims)
        for rows, place in zip(torch.split(qkv, lengths), torch.split(out, lengths), strict=True):
            query, key, value = rows.view(1, rows.shape[0], 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value)  # [1, heads, n, dim]
            place.view(1, rows.shape[0], self._heads, -1).copy_(attended.transpose(1, 2))
        return out


class _Reader:
    """Tensors by the name they have in a plain BERT, whatever the file puts before it."""

    def __init__(self, file: Any, precision: Precision, eps: float) -> None:
        self._file, self._precision, self._eps = file, precision, eps
        self._names = {name.removeprefix("bert."): name for name in file.keys()}  # noqa: SIM118

    def tensor(self, name: str) -> Tensor:
        if name not in self._names:
            raise ModelLoadError(f"{WEIGHTS} has no tensor {name!r}; it must hold a BERT encoder.")
        tensor: Tensor = self._file.get_tensor(self._names[name]).float()
        return tensor

    def norm(self, name: str) -> _Norm:
        return _Norm(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), self._eps)

    def linear(self, *names: str) -> _Linear:
        """Several linears of one input become one."""
        weight = torch.cat([self.tensor(f"{name}.weight") for name in names])
        bias = torch.cat([self.tensor(f"{name}.bias") for name in names])
        if self._precision == "none":
            return _Linear(lambda x, bias: F.linear(x, weight, bias), bias)
        quantized = Int8Weight.quantize(weight)
        quantized.pack(keep_plain=True)
        return _Linear(quantized.matmul, bias)


def _read_layer(read: _Reader, name: str) -> _Layer:
    attention = f"{name}.attention.self"
    return _Layer(
        qkv=read.linear(f"{attention}.query", f"{attention}.key", f"{attention}.value"),
        out=read.linear(f"{name}.attention.output.dense"),
        attention_norm=read.norm(f"{name}.attention.output.LayerNorm"),
        up=read.linear(f"{name}.intermediate.dense"),
        down=read.linear(f"{name}.output.dense"),
        norm=read.norm(f"{name}.output.LayerNorm"),
    )


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
