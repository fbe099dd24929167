"""What only a GPU can show: that graphs are recorded as promised, and that nothing in a plain step waits for the device."""

import pytest
import torch

from penstock.scheduler import Engine, EngineConfig, SamplingParams
from penstock.scheduler.cuda_graph import CudaGraphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def test_what_waits_for_the_device_is_refused_and_leaves_it_usable():
    x = torch.arange(4.0, device="cuda")
    graphs = CudaGraphs(x.device)
    double = graphs.record(lambda: x * 2)
    with pytest.raises(RuntimeError):
        graphs.record(lambda: x * float(x.sum()))
    x += 1
    assert torch.equal(double(), torch.tensor([2.0, 4.0, 6.0, 8.0], device="cuda"))


def test_plain_steps_never_wait_but_for_the_tokens_of_the_step_before(tiny_llama):
    """Sampled and greedy rows, prompts and decodes, replayed and not."""
    settings = {"model": str(tiny_llama), "device": "cuda", "quantize": "w8a8", "speculation": "off"}
    engine = Engine(EngineConfig(**settings, max_num_seqs=8))
    plain = Engine(EngineConfig(**settings, max_num_seqs=8, overlap="off", decode_graphs="off"))
    params = [
        SamplingParams(temperature=temperature, seed=3, max_tokens=12, ignore_eos=True)
        for temperature in (0.0, 1.0, 0.7)
    ]
    answers = []
    # The first time kernels are compiled and graphs recorded.
    for served, mode in ((plain, "default"), (engine, "default"), (engine, "error")):
        found: dict[str, list[int]] = {}
        for number, each in enumerate(params):
            served.add_request(str(number), [5 + number, 6, 7], each)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            while served.has_work():
                for delta in served.step():
                    found.setdefault(delta.request_id, []).extend(delta.token_ids)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        answers.append(found)
    assert answers[0] == answers[1] == answers[2] and all(len(tokens) == 12 for tokens in answers[0].values())
    assert engine.runner._forward._graphs._recorded
