"""Batches are a pure function of seed and step, and hold every text once an epoch."""

from penstock.compress.texts import Tokens
from penstock.compress.training.batches import IGNORE, Batches, in_order, to_batch


def texts(count: int = 50) -> list[Tokens]:
    """The first id names the text."""
    return [Tokens([i, *range(100, 102 + i % 13)], [False, *[True] * (2 + i % 13)]) for i in range(count)]


def test_labels_are_the_next_tokens_where_they_are_learnt_and_nothing_else():
    batch = to_batch([Tokens([5, 6, 7, 8], [False, False, True, True]), Tokens([9, 10], [False, True])])
    assert batch.ids.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, 7, 8], [10, IGNORE, IGNORE]]


def test_an_epoch_holds_every_text_once_and_batches_keep_to_their_tokens():
    batches = Batches(texts(), 64, seed=3)
    seen, step = [], 0
    while len(seen) < 100:  # two epochs
        batch = batches.at(step)
        assert batch.ids.numel() <= 64
        seen += batch.ids[:, 0].tolist()
        step += 1
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50] != seen[50:]


def test_a_batch_can_be_asked_for_in_any_order():
    one, other = Batches(texts(), 64, seed=3), Batches(texts(), 64, seed=3)
    ahead = [one.at(step).ids.tolist() for step in range(20)]
    assert ahead == [other.at(step).ids.tolist() for step in reversed(range(20))][::-1]
    assert ahead != [Batches(texts(), 64, seed=4).at(step).ids.tolist() for step in range(20)]


def test_a_text_longer_than_a_batch_is_one_by_itself():
    long = Tokens(list(range(200)), [True] * 200)
    sizes = [batch.ids.shape for batch in in_order([*texts(5), long], 64)]
    assert sizes[-1] == (1, 199)
