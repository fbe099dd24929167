"""The weights of a BERT encoder, read from safetensors and quantized: what both ways of computing it are made of.

Reads the file by itself: transformers would cost a second of start for six layers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from ..errors import ModelLoadError
from ..kernels.cpu.int8_matmul import Int8Weight
from .pooling import Pooling

WEIGHTS = "model.safetensors"

Precision = Literal["w8a8", "none"]


@dataclass(frozen=True, slots=True)
class Linear:
    """`weight`: [N, K], `bias`: [N] float32."""

    weight: Int8Weight | Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N]"""
        if isinstance(self.weight, Int8Weight):
            return self.weight.matmul(x, self.bias)
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """`weight`, `bias`: [H] float32."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Linear
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    norm: Norm


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """Attributes:
    words: [vocabulary, H] float32.
    positions: [positions, H] float32, each with the row of the first segment, of which every token is.
    """

    words: Tensor
    positions: Tensor
    norm: Norm
    layers: list[Layer]
    heads: int
    pooling: Pooling

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any], precision: Precision) -> "EncoderWeights":
        """Raises ModelLoadError for what cannot be read, or is no BERT encoder."""
        try:
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                read = _Reader(file, precision, config.get("layer_norm_eps", 1e-12))
                segment = read.tensor("embeddings.token_type_embeddings.weight")[0]
                return cls(
                    words=read.tensor("embeddings.word_embeddings.weight"),
                    positions=read.tensor("embeddings.position_embeddings.weight") + segment,
                    norm=read.norm("embeddings.LayerNorm"),
                    layers=[read.layer(f"encoder.layer.{n}") for n in range(config["num_hidden_layers"])],
                    heads=config["num_attention_heads"],
                    pooling=Pooling.of(folder),
                )
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(f"{folder / WEIGHTS} cannot be read: {error}.") from error


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

    def norm(self, name: str) -> Norm:
        return Norm(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), self._eps)

    def linear(self, *names: str) -> Linear:
        """Several linears of one input become one."""
        weight = torch.cat([self.tensor(f"{name}.weight") for name in names])
        bias = torch.cat([self.tensor(f"{name}.bias") for name in names])
        if self._precision == "none":
            return Linear(weight, bias)
        quantized = Int8Weight.quantize(weight)
        quantized.pack(keep_plain=True)
        return Linear(quantized, bias)

    def layer(self, name: str) -> Layer:
        attention = f"{name}.attention.self"
        return Layer(
            qkv=self.linear(f"{attention}.query", f"{attention}.key", f"{attention}.value"),
            out=self.linear(f"{name}.attention.output.dense"),
            attention_norm=self.norm(f"{name}.attention.output.LayerNorm"),
            up=self.linear(f"{name}.intermediate.dense"),
            down=self.linear(f"{name}.output.dense"),
            norm=self.norm(f"{name}.output.LayerNorm"),
        )
