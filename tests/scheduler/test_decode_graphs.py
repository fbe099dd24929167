"""Replayed decodes answer as launched ones do, bit for bit. The interpreter computes again what a GPU would replay, on the
same memory: what is filled up, copied and left over is the same. With a GPU the graphs are real.
"""

import logging
from pathlib import Path

import pytest
import torch
from engine_answers import answers, params
from tiny_adapter import write_adapter

from penstock.errors import ModelLoadError
from penstock.scheduler import Engine, EngineConfig, SamplingParams
from penstock.scheduler.decode_graphs import DecodeGraphs

DEVICE = "cuda" if torch.cuda.is_available() else "interpreter"


@pytest.fixture(scope="module")
def engine(other_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    adapter = write_adapter(tmp_path_factory.mktemp("adapters") / "tuned", other_llama, seed=1)
    engine = Engine(
        EngineConfig(
            model=str(other_llama),
            dtype="float32",
            device=DEVICE,
            quantize="w8a8",
            adapters={"tuned": str(adapter)},
            decode_graphs="on",
            overlap="on",
            kv_cache_tokens=512,
            max_num_batched_tokens=16,
            max_num_seqs=8,
        )
    )
    engine.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(limit, 2)
    return engine


def graphs_of(engine: Engine) -> DecodeGraphs:
    found = engine.runner._forward._graphs
    assert found is not None
    return found


def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many steps were replayed, and how many were not for a graph."""
    counts = {"replayed": 0, "launched": 0}
    graphs = graphs_of(engine)
    logits = graphs.logits

    def count(*args):
        found = logits(*args)
        counts["launched" if found is None else "replayed"] += 1
        return found

    monkeypatch.setattr(graphs, "logits", count)
    return counts


# Five sequences end one after the other, so that steps have 5, 4, 3, 2 and 1 rows; one guesses what repeats.
REQUESTS = [
    ([5], params(9)),
    ([9, 4], params(3, temperature=1.0, seed=3)),
    ([7, 8, 7], params(5, repetition_penalty=1.3)),
    ([250], params(4, drafters=())),
    ([3, 4, 5, 3, 4, 5], params(7, logit_bias={3: 50.0}, drafters=("ngram",))),
]


def launched(engine: Engine, requests: list[tuple[list[int], SamplingParams]]):
    """What the engine answers without graphs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.runner._forward, "_graphs", None)
        return answers(engine, requests)


def test_replayed_steps_give_the_bits_of_launched_ones(engine, monkeypatch):
    expected = launched(engine, REQUESTS)
    assert not graphs_of(engine)._recorded
    accepted = engine.stats.drafters["ngram"].accepted
    counts = counted(engine, monkeypatch)
    assert answers(engine, REQUESTS) == expected
    assert engine.stats.drafters["ngram"].accepted > accepted > 0
    shapes = list(graphs_of(engine)._recorded)
    assert {rows for rows, _ in shapes} >= {1, 4, 8} and {room for _, room in shapes} == {512}
    assert counts["replayed"] > len(shapes) and counts["launched"], counts


def test_an_adapter_keeps_a_step_from_being_replayed(engine, monkeypatch):
    # (Plain ones: the next step is scheduled while one is computed.)
    requests = [([5, 6], params(3, adapter="tuned", logprobs=None)), ([5, 6], params(5, logprobs=None))]
    expected = launched(engine, requests)
    assert expected["0"][0] != expected["1"][0][:3]
    counts = counted(engine, monkeypatch)
    assert answers(engine, requests) == expected
    assert counts == {"launched": 3, "replayed": 2}


def test_a_model_that_cannot_be_recorded_is_computed_without(engine, monkeypatch, caplog):
    def fail(compute):
        compute()
        raise RuntimeError("this model waits for the device")

    requests = [([5], params(3))]
    expected = launched(engine, requests)
    graphs = graphs_of(engine)
    for name, value in (("_record", fail), ("_recorded", {}), ("_most_rows", 8)):
        monkeypatch.setattr(graphs, name, value)
    with caplog.at_level(logging.WARNING):
        assert answers(engine, requests) == expected
    (record,) = [record for record in caplog.records if "CUDA graphs" in record.message]
    assert "this model waits for the device" in record.message and not graphs._recorded


def test_graphs_are_for_gpus(tiny_llama):
    with pytest.raises(ModelLoadError, match="decode_graphs is 'on', which is for GPUs"):
        Engine(EngineConfig(model=str(tiny_llama), device="cpu", decode_graphs="on"))
    assert Engine(EngineConfig(model=str(tiny_llama), device="cpu")).runner._forward._graphs is None
