"""What goes is what the rest can make up for, and what stays is fitted to make up for it."""

import gc

import pytest
import torch

from penstock.compress.plain_model import load_plain
from penstock.compress.prune import moments as moments_module
from penstock.compress.prune.importance import best_groups, channels_by_importance, fit
from penstock.compress.prune.moments import KeptMoments, Moments, moments
from penstock.compress.prune.structure import Size, Structure
from penstock.compress.texts import Tokens
from penstock.errors import CompressError


def inputs(width: int, rows: int = 500) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, width) @ torch.randn(width, width)


def moments_of(module, texts) -> list[Moments]:
    found = []
    moments(module, texts, lambda index, own: found.append(own))
    return found


def test_the_fit_is_least_squares_and_its_loss_is_what_is_lost():
    x, weight, kept = inputs(12), torch.randn(5, 12), torch.tensor([0, 3, 4, 8, 9])
    fitted, lost = fit(x.t() @ x / len(x), weight, kept)
    wanted = x @ weight.t()
    best = torch.linalg.lstsq(x[:, kept], wanted).solution.t()
    torch.testing.assert_close(fitted, best, atol=2e-2, rtol=2e-2)
    away = (x[:, kept] @ fitted.t() - wanted).square().sum() / wanted.square().sum()
    assert lost == pytest.approx(float(away), rel=0.01)
    nothing_fitted = (x[:, kept] @ weight[:, kept].t() - wanted).square().sum() / wanted.square().sum()
    assert lost < 0.9 * nothing_fitted


def test_a_channel_that_another_makes_up_for_goes_before_a_small_one():
    x = torch.randn(500, 6)
    x[:, 4] = x[:, 1] + 1e-3 * torch.randn(500)
    x[:, 2] *= 0.1
    order = channels_by_importance(x.t() @ x / 500, torch.ones(3, 6))
    assert set(order[-2:].tolist()) == {1, 4}
    assert order[-3] == 2


def test_a_channel_that_is_never_active_loses_nothing():
    x = torch.randn(500, 6)
    x[:, 3] = 0
    weight = torch.randn(4, 6)
    order = channels_by_importance(x.t() @ x / 500, weight)
    assert order[-1] == 3
    assert fit(x.t() @ x / 500, weight, order[:5].sort().values)[1] == pytest.approx(0, abs=1e-4)


def test_the_group_goes_whose_columns_the_rest_makes_up_for():
    structure = Structure("layers", Size(1, 1, 3), head_dim=2, group_rows=4)
    x = torch.randn(500, 12)
    x[:, 8:] = x[:, :4] @ torch.randn(4, 4) + 0.01 * torch.randn(500, 4)
    x[:, 8:] *= 3
    kept = best_groups(x.t() @ x / 500, torch.randn(7, 12), 2, structure)
    assert kept.tolist() in ([0, 1], [1, 2])
    assert best_groups(x.t() @ x / 500, torch.randn(7, 12), 1, structure).shape == (1,)


def test_moments_are_those_of_each_text_by_itself(tiny_llama):
    """Padding counts for nothing, and a batch is no other text."""
    model = load_plain(str(tiny_llama))
    torch.manual_seed(2)
    texts = [Tokens(torch.randint(300, (n,)).tolist(), [True] * n) for n in (3, 17, 5, 40, 11)]
    seen: list[list[torch.Tensor]] = [[], []]
    handles = [
        part.register_forward_pre_hook(lambda _, args, own=own: own.append(args[0][0]))
        for part, own in zip(
            (model.module.model.layers[1].mlp.down_proj, model.module.model.layers[1].self_attn.o_proj),
            seen,
            strict=True,
        )
    ]
    with torch.no_grad():
        for text in texts:
            model.module(input_ids=torch.tensor([text.ids]))
    for handle in handles:
        handle.remove()
    mlp, attention = (torch.cat(own) for own in seen)
    (_, found) = moments_of(model.module, texts)
    torch.testing.assert_close(found.mlp, mlp.t() @ mlp / 76, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.attention, attention.t() @ attention / 76, atol=1e-4, rtol=1e-4)


def test_activations_that_are_no_numbers_are_told(tiny_llama):
    model = load_plain(str(tiny_llama))
    torch.nn.init.constant_(model.module.model.layers[1].mlp.up_proj.weight, float("inf"))
    with pytest.raises(CompressError, match="layer 1 computes on the calibration texts is not all numbers"):
        moments_of(model.module, [Tokens([5, 6, 7], [True] * 3)])


def test_moments_of_one_layer_are_in_memory_and_none_are_left_half_written(tiny_llama, tmp_path, monkeypatch):
    module = load_plain(str(tiny_llama)).module
    texts = [Tokens(list(range(3, 40)), [True] * 37)] * 3
    expected = [own.mlp for own in moments_of(module, texts)]
    width = len(expected[0])

    def in_memory() -> int:
        tensors = [part for part in gc.get_objects() if type(part) is torch.Tensor]
        return sum(part.shape == (width, width) for part in tensors)

    before = in_memory()
    save, counts = moments_module.save_file, list[int]()

    def full(tensors, file):
        save(tensors, file)
        raise OSError(28, "No space left on device")

    kept = KeptMoments(tmp_path / "moments", module, texts, lambda *_: counts.append(in_memory() - before))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(moments_module, "save_file", full)
        kept.of(0)
    assert not list(tmp_path.iterdir())
    counts.clear()
    for index in (1, 0):
        torch.testing.assert_close(kept.of(index).mlp, expected[index])
    assert counts == [0, 0, 0], "those of a layer are gone when the next is begun"
    assert [path.name for path in tmp_path.iterdir()] == ["moments"]
