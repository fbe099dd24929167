"""Points, the settings they stand for, and the file those are written to."""

import random
import tomllib

import pytest

from penstock.tune.levers.catalogue import Cascade, Served, space_of
from penstock.tune.levers.search import first_points
from penstock.tune.levers.settings_file import toml

BF16, INT8 = (
    Served("m:none", {"model": "m", "quantize": "none"}),
    Served("m:w8a8", {"model": "m", "quantize": "w8a8"}),
)


def space(tmp_path=None, **options):
    return space_of([BF16, INT8], **options)


def test_the_baseline_is_the_first_model_without_a_cache():
    found = space()
    settings = found.settings(found.baseline)
    assert settings == {"model": "m", "quantize": "none", "cache": False, "speculation": "auto"}
    assert found.named(found.baseline) == "baseline"


def test_levers_that_would_do_nothing_are_not_there():
    assert [lever.name for lever in space().levers] == ["model", "cache", "guessing", "batch"]
    long = space(longest_prompt=9000, on_gpu=True)
    assert [lever.name for lever in long.levers][-2:] == ["KV", "attention"]


def test_one_model_only_is_still_served():
    found = space_of([BF16])
    assert found.settings(found.baseline)["model"] == "m"


def test_every_choice_alone_comes_first_and_no_point_twice():
    found = space()
    points = first_points(found, 24, random.Random(0))
    alone = list(found.alone())
    assert points[: len(alone)] == alone and len(alone) == 1 + 5 + 1 + 2
    assert len(points) == len(set(points)) == 24
    assert found.baseline not in points
    assert len(first_points(found, 10_000, random.Random(0))) == found.size - 1


def test_tables_of_several_choices_become_one_file(tmp_path):
    router = tmp_path / "router.json"
    cascade = Cascade(
        Served("s", {"model": "small folder", "quantize": "auto"}), router, "s", "l", [0.9, 0.99]
    )
    found = space(cascade=cascade, longest_prompt=9000)
    point = tuple(len(lever.choices) - 1 for lever in found.levers)
    settings = tomllib.loads(toml(found.settings(point), "two\nlines"))
    assert settings["model"] == "m" and settings["quantize"] == "w8a8"
    assert settings["cache_mode"] == "trusted" and settings["cache_max_error_rate"] == 0.03
    assert settings["tiers"] == {"s": {"model": "small folder", "quantize": "auto"}}
    assert settings["routes"]["tuned"] == {
        "policy": "cascade",
        "targets": ["s", "l"],
        "router": str(router),
        "quality": 0.99,
    }
    assert settings["sparse_attention"] == {"mass": 0.9, "min_context": 4096}


@pytest.mark.parametrize("text", ['a "quoted" \\ path', "tab\tand\nline", "\x7f\x00", "é 漢 😀"])
def test_any_text_comes_back_from_the_file(text):
    assert tomllib.loads(toml({"a b": text, "t": {text: [text, 1, 0.5, True]}})) == {
        "a b": text,
        "t": {text: [text, 1, 0.5, True]},
    }
