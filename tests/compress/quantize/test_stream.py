"""Texts that go through a model block by block come out as they do of the model itself."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.compress.quantize.stream import Ending, Passage, as_batches, in_float32
from penstock.compress.texts import Tokens
from penstock.errors import CompressError


def some_texts(count: int = 12, vocabulary: int = 300) -> list[Tokens]:
    draw = random.Random(3)
    lengths = [draw.randrange(5, 60) for _ in range(count)]
    return [
        Tokens([draw.randrange(3, vocabulary) for _ in range(length)], [False, *[True] * (length - 1)])
        for length in lengths
    ]


# Windows by turns, scaled embeddings, capped logits, norms that multiply by 1 + weight; a head that is scaled; no rotary
# angles, and two norms in parallel.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"sliding_window": 16, "head_dim": 16},
    "granite": {"logits_scaling": 4.0},
    "gpt_neox": {},
}


def model_of(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ids = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **common, **heads, **ids, initializer_range=0.15, **KINDS[kind])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def logits_by_blocks(passage: Passage) -> list[Tensor]:
    hidden = passage.start
    for index, block in enumerate(passage.blocks):
        with in_float32(list(block.parameters())):
            hidden = passage.through(index, hidden)
    return [found for (found,) in passage.logits([Ending(hidden)])]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_models_own(kind: str) -> None:
    module = model_of(kind)
    passage = Passage(module, some_texts())
    found = logits_by_blocks(passage)
    texts = sorted(some_texts(), key=lambda text: len(text.ids))
    assert len(found) == len(texts)
    with torch.no_grad():
        for logits, text in zip(found, texts, strict=True):
            own = module(torch.tensor([text.ids]), use_cache=False).logits[0, :-1]
            torch.testing.assert_close(logits, own, atol=2e-4, rtol=2e-4)


def test_the_model_is_left_as_it_was(tiny_llama: Path) -> None:
    from penstock.compress.plain_model import load_plain

    module = load_plain(str(tiny_llama), dtype="bfloat16").module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    passage = Passage(module, some_texts())
    logits_by_blocks(passage)
    with pytest.raises(RuntimeError), in_float32(list(module.parameters())):
        for parameter in module.parameters():
            parameter.data.zero_()
        raise RuntimeError
    after = module.state_dict()
    assert all(after[name].dtype is torch.bfloat16 for name in before)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any("forward" in vars(block) for block in passage.blocks)


def test_batches_hold_every_text_once_and_little_padding() -> None:
    batches = as_batches(some_texts(100), batch_tokens=512)
    assert sum(len(batch.ids) for batch in batches) == 100
    assert all(batch.ids.numel() <= 512 for batch in batches)
    padded = sum(batch.ids.numel() for batch in batches)
    assert padded < 1.2 * sum(int(batch.keep.sum()) for batch in batches)


def test_a_model_that_cannot_compute_is_named() -> None:
    module = model_of("llama")
    module.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(5, 5))
    with pytest.raises(CompressError, match="LlamaForCausalLM cannot compute two tokens"):
        Passage(module, some_texts())
