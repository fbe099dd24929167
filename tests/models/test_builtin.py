"""The models that come with the package: they answer under their names, share a vocabulary, and bear to be made smaller."""

import json
import random
from pathlib import Path

import pytest

from penstock import Engine, EngineConfig, SamplingParams
from penstock.cli import main
from penstock.models.location import BUILTIN_FOLDERS, model_name
from penstock.models.recipe.newcomer import read_tasks
from penstock.models.recipe.unseen import LISTS
from penstock.models.tokenizer import Tokenizer

QUESTIONS = {
    "how do I extract a tar.gz archive?": "`tar -x",
    "show hidden files": "`ls -",
    "how do I see the size of a folder?": "`du -",
}
GREEDY = SamplingParams(temperature=0, max_tokens=64)
SMALLER = {
    "w4a16": ["quantize", "builtin", "--scheme", "w4a16", "--group-size", "32"],
    "mlp25": ["prune", "builtin", "--mlp", "0.25", "--recovery-steps", "10"],
}


def answers(config: EngineConfig) -> list[str]:
    engine, tokenizer = Engine(config), Tokenizer.load(config.model)
    prompts = [
        tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": q}]), add_special_tokens=False)
        for q in QUESTIONS
    ]
    found = engine.generate(prompts, GREEDY, tokenizer=tokenizer)
    return [result.completions[0].text for result in found]


def assert_it_knows_everyday_commands_and_stops(model: str) -> None:
    for answer, command in zip(answers(EngineConfig(model=model)), QUESTIONS.values(), strict=True):
        assert answer.startswith(command) and answer.endswith("."), answer


@pytest.mark.parametrize("model", BUILTIN_FOLDERS)
def test_it_knows_everyday_commands_and_stops(model):
    assert model_name(model) == model
    assert_it_knows_everyday_commands_and_stops(model)


def test_the_small_one_guesses_for_the_large_one_and_changes_nothing():
    alone = answers(EngineConfig(model="builtin-large"))
    assert answers(EngineConfig(model="builtin-large", draft_model="builtin")) == alone


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 of the hand-written tasks that the models learnt."""
    file, rng = tmp_path_factory.mktemp("texts") / "texts.jsonl", random.Random(7)
    tasks = [task for task in read_tasks(LISTS[0].parent / "newcomer") if task.is_asked]
    with file.open("w") as out:
        for task in rng.sample(tasks, 500):
            pair = task.sample(rng, ()).pairs[-1]
            turns = {"user": pair.question, "assistant": pair.answer}
            messages = [{"role": role, "content": text} for role, text in turns.items()]
            out.write(json.dumps({"messages": messages}) + "\n")
    return file


@pytest.mark.parametrize("name", SMALLER)
def test_made_smaller_by_our_commands_it_passes_their_gates_and_still_answers(
    name: str, conversations: Path, tmp_path: Path
) -> None:
    folder = str(tmp_path / name)
    assert main([*SMALLER[name], "--no-speed", "--data", str(conversations), "--output", folder]) == 0
    assert_it_knows_everyday_commands_and_stops(folder)
