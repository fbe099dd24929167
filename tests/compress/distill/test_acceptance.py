"""What a draft model's tokens are worth: the formula, position by position."""

import pytest
import torch

from penstock.compress.distill.acceptance import acceptance
from penstock.compress.plain_model import load_plain
from penstock.compress.texts import Tokens
from penstock.compress.training import chunked


def texts() -> list[Tokens]:
    torch.manual_seed(3)
    rows = [torch.randint(300, (5 + 3 * i,)).tolist() for i in range(6)]
    return [Tokens(ids, [i % 3 != 1 for i in range(len(ids))]) for ids in rows]


def test_a_model_accepts_itself(tiny_llama):
    model = load_plain(str(tiny_llama)).module
    found = acceptance(model, model, texts())
    assert found.greedy.value == 1 and found.sampled.value == pytest.approx(1)


def test_it_is_the_formula_over_the_tokens_that_are_learnt(tiny_llama, other_llama, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 0)
    student, teacher = load_plain(str(other_llama)).module, load_plain(str(tiny_llama)).module
    same, overlap = [], []
    with torch.no_grad():
        for text in texts():
            ids = torch.tensor([text.ids[:-1]])
            p, q = (m(ids).logits[0, :, :316].softmax(-1) for m in (teacher, student))
            wanted = torch.tensor(text.learn[1:])
            same += (p.argmax(-1) == q.argmax(-1))[wanted].tolist()
            overlap += torch.minimum(p, q).sum(-1)[wanted].tolist()
    found = acceptance(student, teacher, texts())
    assert found.greedy.count == len(same)
    assert found.greedy.value == pytest.approx(sum(same) / len(same))
    assert found.sampled.value == pytest.approx(sum(overlap) / len(overlap), rel=1e-5)
    assert found.sampled.low < found.sampled.value < found.sampled.high
