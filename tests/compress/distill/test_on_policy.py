"""The student's own answers: to the data's prompts, told apart from the truth, and the same again after a restart."""

import pytest
import torch

from penstock.compress.distill.on_policy import REFRESH, OnPolicy, prompt_of, sample_answers
from penstock.compress.plain_model import load_plain
from penstock.compress.texts import Tokens
from penstock.compress.training.batches import IGNORE

END = 2
TEXTS = [
    Tokens([3 + i, 50 + i, 60, *range(100, 104 + i % 5)], [False] * 3 + [True] * (4 + i % 5))
    for i in range(40)
]


@pytest.fixture(scope="module")
def student(tiny_llama):
    return load_plain(str(tiny_llama)).module


def source(student, share: float) -> OnPolicy:
    return OnPolicy(
        TEXTS, student, share=share, batch_tokens=128, seed=4, ends=frozenset([END]), vocab_size=320
    )


def test_answers_follow_their_prompts_and_end_where_the_student_ends_them(student):
    torch.manual_seed(0)
    answered = sample_answers(student, TEXTS[:10], frozenset([END]), 320)
    for text, own in zip(TEXTS, answered, strict=False):
        assert own.ids[:3] == text.ids[:3]
        assert own.learn == [False] * 3 + [True] * (len(own.ids) - 3)
        assert 1 <= len(own.ids) - 3 <= 8
        assert END not in own.ids[3:-1]


def test_prompts_of_several_lengths_are_answered_as_if_alone(student):
    """Padding on the left changes no distribution: with the best token only, the answers are those of each prompt alone."""
    prompts = [Tokens([*range(5, 5 + n), 1, 1, 1, 1], [False] * n + [True] * 4) for n in (2, 5, 9)]
    with torch.no_grad():
        student.lm_head.weight.mul_(1e4)  # sampling becomes greedy
        together = [t.ids for t in sample_answers(student, prompts, frozenset(), 320)]
        alone = [sample_answers(student, [p], frozenset(), 320)[0].ids for p in prompts]
        student.lm_head.weight.div_(1e4)
    assert together == alone


def test_rows_that_pad_the_vocabulary_are_never_written(student):
    torch.manual_seed(0)
    answered = sample_answers(student, TEXTS, frozenset([END]), vocab_size=100)
    assert max(token for text in answered for token in text.ids[3:]) < 100


def test_a_text_without_a_prompt_lends_its_first_quarter():
    assert prompt_of(Tokens(list(range(40)), [True] * 40)) == list(range(10))
    assert prompt_of(TEXTS[0]) == TEXTS[0].ids[:3]


def test_the_share_is_that_of_the_batches_and_the_rest_is_the_data(student):
    mixed = source(student, 0.5)
    batches = [mixed.at(step) for step in range(2 * REFRESH)]
    own = sum(batch.written_by_student for batch in batches)
    assert 0.3 * len(batches) < own < 0.7 * len(batches)
    whole = {tuple(text.ids) for text in TEXTS}
    for batch in batches:
        if not batch.written_by_student:
            last = batch.labels[0][batch.labels[0] != IGNORE].tolist()
            assert (*batch.ids[0][:3].tolist(), *last) in whole


def test_a_restart_within_a_round_gives_the_batches_that_would_have_come(student):
    went_on = source(student, 0.8)
    before = [went_on.at(step) for step in range(REFRESH // 2)]
    assert any(batch.written_by_student for batch in before)
    restarted = source(student, 0.8)
    restarted.restore(went_on.state())
    for step in range(REFRESH // 2, REFRESH):
        torch.manual_seed(step)
        expected = went_on.at(step)
        torch.manual_seed(step)
        assert torch.equal(restarted.at(step).ids, expected.ids)


def test_the_next_round_is_sampled_anew(student):
    always = source(student, 1.0)
    first = {tuple(row) for step in range(REFRESH) for row in always.at(step).ids.tolist()}
    second = {tuple(row) for step in range(REFRESH, 2 * REFRESH) for row in always.at(step).ids.tolist()}
    assert first and second and not first & second
