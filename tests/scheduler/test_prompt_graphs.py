"""Replayed prompts answer as launched ones do, bit for bit. The interpreter computes again what a GPU would replay, on the
same memory: what is filled up, copied and left over is the same. With a GPU the graphs are real.
"""

import logging
from pathlib import Path

import pytest
import torch
from engine_answers import answers, params

from penstock.config import SparseAttention
from penstock.errors import ModelLoadError
from penstock.scheduler import Engine, EngineConfig
from penstock.scheduler.prompt_graphs import PromptGraphs, padded_kept, padded_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "interpreter"


def prompts_of(*lengths: int) -> list[list[int]]:
    return [
        [(7 * number + place) % 200 + 3 for place in range(length)] for number, length in enumerate(lengths)
    ]


def engine_of(model: Path, **settings) -> Engine:
    return Engine(
        EngineConfig(
            model=str(model),
            dtype="float32",
            device=DEVICE,
            quantize="w8a8",
            prompt_graphs="on",
            kv_cache_tokens=1024,
            max_num_batched_tokens=24,
            max_num_seqs=8,
            speculation="off",
            **settings,
        )
    )


def graphs_of(engine: Engine) -> PromptGraphs:
    found = engine.runner._forward._prompt_graphs
    assert found is not None
    return found


def launched(engine: Engine, requests: list):
    """What the engine answers without graphs; the prompts' KV is not kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.runner._forward, "_prompt_graphs", None)
        return answers(engine, requests)


@pytest.mark.parametrize(
    ("lengths", "settings"),
    [
        ((21, 3, 12), {"decode_graphs": "off"}),
        ((21, 3, 12), {"decode_graphs": "on", "kv_cache_dtype": "int8"}),
        ((66,), {"sparse_attention": SparseAttention(mass=0.5, min_context=64), "decode_graphs": "off"}),
    ],
    ids=["all steps", "beside replayed decodes", "sparse decodes"],
)
def test_replayed_prompts_give_the_bits_of_launched_ones(other_llama, lengths, settings, monkeypatch):
    engine = engine_of(other_llama, prefix_caching=False, **settings)
    requests = [
        (prompt, params(3, temperature=number / 2, seed=3))
        for number, prompt in enumerate(prompts_of(*lengths))
    ]
    expected = launched(engine, requests)
    graphs, counts = graphs_of(engine), []
    compute = graphs.logits

    def noted(input_ids, *others):
        counts.append(input_ids.shape[1])
        found = compute(input_ids, *others)
        assert found is not None
        return found

    monkeypatch.setattr(graphs, "logits", noted)
    assert answers(engine, requests) == expected
    assert {padded_tokens(count) for count in counts} == {16, 24}
    assert any(count != padded_tokens(count) for count in counts)
    assert set(graphs._recorded) == {(16, 16), (24, 16)}, "all of it when the engine was loaded"


def test_a_model_that_cannot_be_recorded_is_computed_without(other_llama, monkeypatch, caplog):
    def fail(compute):
        compute(lambda launch: launch())
        raise RuntimeError("this model waits for the device")

    engine = engine_of(other_llama, prefix_caching=False)
    requests = [(prompts_of(20)[0], params(3))]
    expected = launched(engine, requests)
    for name, value in (("_record", fail), ("_recorded", {})):
        monkeypatch.setattr(graphs_of(engine), name, value)
    with caplog.at_level(logging.WARNING):
        assert answers(engine, requests) == expected
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "this model waits for the device" in record.message and not graphs_of(engine)._recorded


def test_steps_of_many_tokens_are_launched(other_llama):
    graphs = graphs_of(engine_of(other_llama))
    ids = torch.zeros(1, 25, dtype=torch.int64, device=graphs._kv_cache.device)
    assert graphs.logits(ids, ids, ids[0, :1], []) is None


def test_graphs_are_for_gpus(tiny_llama):
    with pytest.raises(ModelLoadError, match="prompt_graphs is 'on', which is for GPUs"):
        Engine(EngineConfig(model=str(tiny_llama), device="cpu", prompt_graphs="on"))


def test_how_many_rows_are_filled_up():
    assert [padded_tokens(n) for n in (1, 16, 17, 24, 25, 33, 49, 65, 97, 512, 513)] == [
        16, 16, 24, 24, 32, 48, 64, 96, 128, 512, 768,
    ]  # fmt: skip
    assert [padded_kept(n) for n in (1, 16, 17, 64, 65, 300)] == [16, 16, 64, 64, 256, 1024]
