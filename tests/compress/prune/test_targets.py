"""What is asked for becomes a size that can be cut, or a range that is possible; a price is counted, or fitted to times."""

import pytest

from penstock.compress.plain_model import load_plain
from penstock.compress.prune.price import Price, parameters_of, price_of_time, probes
from penstock.compress.prune.structure import Size, structure_of
from penstock.compress.prune.targets import asked_size, cheapest_loss, check_size, check_speed_up
from penstock.errors import CompressError

WHOLE = Size(layers=8, channels=1024, groups=4)
PRICE = Price(fixed=5000.0, layer=100.0, channel=3.0, group=400.0)


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"mlp": 0.25}, Size(8, 768, 4)),
        ({"mlp": 0.3}, Size(8, 704, 4)),  # 716.8 channels, by 32
        ({"mlp": 0.999}, Size(8, 32, 4)),
        ({"kv_groups": 0.5}, Size(8, 1024, 2)),
        ({"layers": 3}, Size(5, 1024, 4)),
        ({"mlp": 0.5, "kv_groups": 0.75, "layers": 1}, Size(7, 512, 1)),
    ],
)
def test_shares_are_rounded_to_what_can_be_cut(asked, size):
    assert asked_size(WHOLE, **{"mlp": None, "kv_groups": None, "layers": None} | asked) == size


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"mlp": 0.01},
            "mlp is 0.01; .* of the 1024 channels that goes can be from 0.0312 to 0.969, 32 channels",
        ),
        ({"mlp": 1.0}, "mlp is 1; "),
        ({"mlp": float("nan")}, "mlp is nan; "),
        ({"mlp": -0.5}, "mlp is -0.5; "),
        ({"kv_groups": 0.05}, "kv_groups is 0.05; .* of the 4 groups that goes can be from 0.25 to 0.75"),
        ({"kv_groups": 1.0}, "kv_groups is 1; "),
        ({"layers": 8}, "layers is 8; the model has 8, of which 1 to 7 can go"),
        ({"layers": 0}, "layers is 0; "),
    ],
)
def test_what_cannot_be_cut_is_told_with_what_can(asked, says):
    with pytest.raises(CompressError, match=says):
        asked_size(WHOLE, **{"mlp": None, "kv_groups": None, "layers": None} | asked)


def test_targets_out_of_reach_are_told_with_the_range():
    with pytest.raises(CompressError, match=r"size is 0.05; .* can be from 0.13 to below 1"):
        check_size(WHOLE, PRICE, 0.05)
    with pytest.raises(CompressError, match=r"speed_up is 9; .* at most 7.71 times as fast"):
        check_speed_up(WHOLE, PRICE, 9)
    check_size(WHOLE, PRICE, 0.5)
    check_speed_up(WHOLE, PRICE, 2)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.4])
def test_the_search_takes_what_costs_least_and_meets_the_target(share):
    def kl(sizes):
        """Channels cost little, groups more, layers most."""
        return [(1024 - size.channels) / 1e4 + 0.05 * (4 - size.groups) + (8 - size.layers) for size in sizes]

    size = cheapest_loss(WHOLE, PRICE, share, kl)
    assert size.layers == 8 and size.channels % 32 == 0
    assert 0.95 * share < PRICE.of(size) / PRICE.of(WHOLE) <= share
    assert (size.groups == 4) == (share > 0.5)

    def layers_are_free(sizes):
        return [loss - (8 - size.layers) for loss, size in zip(kl(sizes), sizes, strict=True)]

    assert cheapest_loss(WHOLE, PRICE, share, layers_are_free).layers < 8


def test_parameters_are_counted(tiny_llama):
    module = load_plain(str(tiny_llama)).module
    structure = structure_of(module)
    price = parameters_of(module, structure)
    assert price.of(structure.size) == module.num_parameters()
    # Two layers of 64 wide: a channel is three vectors, a group two query heads, a key and a value head of 16.
    assert (price.channel, price.group, price.layer) == (3 * 64, 64 * 16 * (2 + 2 + 2), 2 * 64)


def test_a_price_of_time_is_found_again_from_its_probes():
    sizes = probes(WHOLE)
    found = price_of_time(WHOLE, {name: PRICE.of(size) for name, size in sizes.items()})
    for part in ("fixed", "layer", "channel", "group"):
        assert getattr(found, part) == pytest.approx(getattr(PRICE, part))
    noisy = dict.fromkeys(sizes, 1.0) | {"half its channels": 1.1}
    assert price_of_time(WHOLE, noisy) == Price(1.0, 0.0, 0.0, 0.0)
