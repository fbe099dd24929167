"""What weights take is what their shapes say, in each precision, shared ones once."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from penstock.compress.evaluate import ServedScorer
from penstock.compress.evaluate.weight_bytes import weight_bytes
from penstock.models.loading import load_model

# Multiples of 128, so that no kernel pads them.
HIDDEN, INNER, VOCAB = 128, 256, 640
EMBEDDING = HEAD = VOCAB * HIDDEN
LINEARS = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN // 2 * HIDDEN + 3 * HIDDEN * INNER)
NORMS = 5 * HIDDEN
ANGLES = 2 * (HIDDEN // 4 // 2) * 4  # bytes of rotary frequencies, as used and as first made


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bool]:
    """A folder, and whether embedding and head share a matrix."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=request.param,
    )
    folder: Path = tmp_path_factory.mktemp("models") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder), request.param


def test_as_stored_it_is_the_parameters(model: tuple[str, bool]) -> None:
    folder, is_tied = model
    loaded = load_model(folder, device="cpu", quantize="none")
    numbers = EMBEDDING + (0 if is_tied else HEAD) + LINEARS + NORMS
    assert weight_bytes(loaded.module) == 4 * numbers + ANGLES


@pytest.mark.parametrize(("precision", "bits"), [("w8a8", 8), ("w8a16", 8), ("w4a16", 4)])
def test_quantized_it_is_the_bits_and_a_little_for_scales(
    precision: str, bits: int, model: tuple[str, bool]
) -> None:
    loaded = load_model(model[0], device="cpu", quantize=precision)
    linears = (HEAD + LINEARS) * bits / 8
    found = weight_bytes(loaded.module)
    rest = 4 * (EMBEDDING + NORMS) + ANGLES
    assert 1.01 * linears + rest < found < 1.12 * linears + rest
    list(ServedScorer(loaded, "tiny").logits(list(range(50)), 50))
    assert weight_bytes(loaded.module) == found, "neither KV nor working memory"
