"""What a model's own generation_config.json says about sampling holds where a request says nothing."""

import json
from pathlib import Path

import pytest

from penstock.errors import ModelLoadError
from penstock.models.generation_defaults import GenerationDefaults


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, GenerationDefaults()),
        ({"do_sample": False, "temperature": 0.7}, GenerationDefaults({"temperature": 0.0})),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 20},
            GenerationDefaults({"temperature": 0.7, "top_k": 20}),
        ),
        ({"top_p": 0.8, "max_new_tokens": 64}, GenerationDefaults({"top_p": 0.8}, 64)),
    ],
)
def test_what_the_file_states_is_taken(
    tmp_path: Path, stated: dict[str, object], expected: GenerationDefaults
):
    (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    assert GenerationDefaults.load(tmp_path) == expected


def test_no_file_changes_nothing(tmp_path: Path):
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: str):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"generation_config\.json"):
        GenerationDefaults.load(tmp_path)
