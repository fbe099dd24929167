"""Quantizing takes a block and the activations beside the model, however many blocks there are."""

import gc
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from penstock.compress.quantize.job import QuantizeJob
from penstock.compress.quantize.run import quantize
from penstock.compress.texts import Example

WORDS = [
    "the",
    "list",
    "of",
    "files",
    "in",
    "a",
    "folder",
    "and",
    "how",
    "to",
    "extract",
    "an",
    "archive",
    "or",
    "search",
    "for",
    "text",
    "in",
    "it",
]


def deeper(tiny_llama: Path, folder: Path, layers: int) -> Path:
    shutil.copytree(tiny_llama, folder)
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=layers, intermediate_size=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def tensor_bytes() -> int:
    """Of all tensors that are alive, each piece of memory once."""
    tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def most_beside_the_model(model: Path, output: Path, scheme: str) -> int:
    """The most bytes that tensors took at any time while blocks were quantized, less the weights' file."""
    draw = random.Random(9)
    texts = [Example(completion=" ".join(draw.choices(WORDS, k=36))) for _ in range(80)]
    most = 0

    def progress(part: str, done: int, of: int) -> None:
        nonlocal most
        if part == "quantize":
            most = max(most, tensor_bytes())

    before = tensor_bytes()
    job = QuantizeJob(str(model), output, scheme, "texts", most_kl=9.0, least_agreement=0.0)  # type: ignore[arg-type]
    quantize(job, texts, progress=progress)
    return most - before - (model / "model.safetensors").stat().st_size


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_four_times_the_blocks_take_no_more_memory(tiny_llama: Path, tmp_path: Path, scheme: str) -> None:
    few, many = deeper(tiny_llama, tmp_path / "few", 3), deeper(tiny_llama, tmp_path / "many", 12)
    with_few = most_beside_the_model(few, tmp_path / "small-few", scheme)
    with_many = most_beside_the_model(many, tmp_path / "small-many", scheme)
    assert with_few > 400_000, "a block in float32 is that large"
    assert with_many < with_few + 100_000
