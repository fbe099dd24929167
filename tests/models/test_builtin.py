"""The models that come with the package: they answer, under their names, and are of one vocabulary."""

import pytest

from penstock import Engine, EngineConfig, SamplingParams
from penstock.models.location import BUILTIN_FOLDERS, model_name
from penstock.models.tokenizer import Tokenizer

QUESTIONS = {
    "how do I extract a tar.gz archive?": "`tar -x",
    "show hidden files": "`ls -",
    "how do I see the size of a folder?": "`du -",
}
GREEDY = SamplingParams(temperature=0, max_tokens=64)


def answers(config: EngineConfig) -> list[str]:
    engine, tokenizer = Engine(config), Tokenizer.load(config.model)
    prompts = [
        tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": q}]), add_special_tokens=False)
        for q in QUESTIONS
    ]
    found = engine.generate(prompts, GREEDY, tokenizer=tokenizer)
    return [result.completions[0].text for result in found]


@pytest.mark.parametrize("model", BUILTIN_FOLDERS)
def test_it_knows_everyday_commands_and_stops(model):
    assert model_name(model) == model
    for answer, command in zip(answers(EngineConfig(model=model)), QUESTIONS.values(), strict=True):
        assert answer.startswith(command) and answer.endswith("."), answer


def test_the_small_one_guesses_for_the_large_one_and_changes_nothing():
    alone = answers(EngineConfig(model="builtin-large"))
    assert answers(EngineConfig(model="builtin-large", draft_model="builtin")) == alone
