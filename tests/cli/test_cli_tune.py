"""`penstock tune router` as a user runs it: a router that pays is written, one that does not is refused, with a report."""

import json
import math
import re

import pytest
from cache_worker import make_completion, make_key
from tiny_model import write_tiny_model
from two_tiers_server import two_tiers

from penstock.cache import CompletionCache, WholePrompt
from penstock.cli import main
from penstock.proxy.routing.learned import Evidence, Judge, Question
from penstock.proxy.routing.learned.router_file import read_router_file


@pytest.fixture
def tiers():
    with two_tiers() as running:
        yield running


@pytest.fixture
def data(tmp_path):
    """Half of them are hard; which, the words do not tell beforehand."""
    file = tmp_path / "questions.jsonl"
    words = [chr(97 + place % 26) + chr(97 + place // 26) for place in range(600)]
    lines = [
        {"question": f"list {word} {'hard' if place % 2 else 'soft'}", "answer": "ls"}
        for place, word in enumerate(words)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def arguments(tiers, data, tmp_path):
    def arguments(*others, **changes):
        given = {
            "url": tiers.url,
            "data": str(data),
            "qualities": "0.9,0.95",
            "prices": None,
            "output": str(tmp_path / "router.json"),
        } | changes
        flags = [word for name, value in given.items() if value for word in (f"--{name}", value)]
        prices = [] if "prices" in changes else ["--prices", "0.1/0.2", "1/2"]
        return ["tune", "router", "--tiers", "small", "large", *flags, *prices, *others]

    return arguments


def evidence(logprob):
    """As the service gives it: all that is not the chosen token is one other."""
    best = sorted((logprob, math.log(1 - math.exp(logprob))), reverse=True)
    return Evidence(12, [logprob] * 8, [best] * 8, finished=True)


def test_a_router_that_pays_is_written_with_its_report(tiers, arguments, tmp_path, capsys):
    assert main(arguments("--buffer-tokens", "0,4")) == 0
    printed = capsys.readouterr().out
    assert "**cascade: recommended**, with `quality = 0.95`" in printed
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "questions.jsonl",
        *(f"router.{kind}" for kind in ("figures.json", "json", "md", "png", "svg")),
    ]
    judge = Judge.load(tmp_path / "router.json")
    judge.check(small="small", large="large", quality=0.9, buffer_tokens=4)
    question = Question("list zz hard")
    assert judge.keeps(question, evidence(-0.1)).accept
    assert not judge.keeps(question, evidence(-1.5)).accept
    figures = json.loads((tmp_path / "router.figures.json").read_bytes())
    cascade = figures["learned"]["policies"][0]
    assert cascade["objection"] is None and cascade["curve"]["mean_gain"]["low"] > 0
    for promise in cascade["promises"]:
        assert promise["quality"]["value"] >= promise["threshold"]["quality"]
    assert (tmp_path / "router.md").read_text().strip() == printed.strip()


def test_a_router_that_does_not_pay_is_refused_and_nothing_asked_again_for_force(
    tiers, arguments, tmp_path, capsys
):
    tiers.telling = False
    # All questions are hard, so that they do not tell, either.
    data = tmp_path / "questions.jsonl"
    data.write_text(data.read_text().replace("soft", "hard"))
    assert main(arguments()) == 1
    message = capsys.readouterr().err
    assert "No router between small and large can be recommended" in message
    assert "--force writes the router all the same" in message
    assert not (tmp_path / "router.json").exists()
    assert "cascade: not recommended" in (tmp_path / "router.md").read_text()
    asked = tiers.asked.total()
    assert main(arguments("--force", qualities="0.5")) == 0
    assert tiers.asked.total() == asked
    assert read_router_file(tmp_path / "router.json").cascade[0].thresholds[0].quality == 0.5


def test_a_tier_without_log_probabilities_is_judged_by_the_question_alone(tiers, arguments, tmp_path, capsys):
    tiers.logprobs = False
    assert main(arguments()) == 0
    printed = capsys.readouterr().out
    assert "**predictive: recommended**" in printed and "cascade" not in printed
    assert re.search(r"\d+ of the small tier's answers came without log-probabilities", printed)
    judge = Judge.load(tmp_path / "router.json")
    # "hard" and "soft" are words.
    assert judge.picks(Question("list zz soft")).accept and not judge.picks(Question("list zz hard")).accept


def test_vectors_of_the_question_are_asked_for_and_looked_at(tiers, arguments, tmp_path, capsys):
    # The word that tells is glued to others: words do not tell, the vector does.
    data = tmp_path / "questions.jsonl"
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    for line in lines:
        line["question"] = line["question"].replace(" ", "")
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(arguments("--embeddings", "meaning")) == 0
    assert tiers.asked["meaning"] == 600
    assert "an embedding of 3" in capsys.readouterr().out
    judge = Judge.load(tmp_path / "router.json")
    assert judge.embedding_model == "meaning"
    judge.check(small="small", large="large", predictive=True)
    assert judge.picks(Question("x", [0.0, 0.0, 1.0])).accept
    assert not judge.picks(Question("x", [1.0, 0.0, 1.0])).accept
    assert judge.picks(Question("x")).reasons == ("no_embedding",)


def test_a_run_that_was_cut_goes_on_where_it_was(tiers, arguments, tmp_path, capsys):
    tiers.stops_after = 700
    assert main(arguments()) == 1
    assert "answers 401: key withdrawn" in capsys.readouterr().err
    before = tiers.asked.total()
    tiers.stops_after = float("inf")
    assert main(arguments()) == 0
    # 600 questions to two tiers, each warmed up once; and what was in flight when it was cut.
    again = tiers.asked.total() - before - (1200 - (700 - 2))
    assert 0 <= again <= 8
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".work")]


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"qualities": "1.5"}, "qualities is '1.5'; it must be numbers between 0 and 1"),
        ({"buffer-tokens": "-1"}, "buffer_tokens is '-1'; it must be numbers 0 or more"),
        ({"delta": "0"}, "delta is 0.0; it must be between 0 and 1"),
        ({"concurrency": "0"}, "concurrency is 0; it must be at least 1"),
        ({"output": "router.toml"}, "name a .json file"),
        ({"output": "/nowhere/router.json"}, "its folder is not there"),
        ({"url": "localhost"}, "write it as http://host:port"),
        ({"data": "/nowhere.jsonl"}, "/nowhere.jsonl cannot be read"),
        ({"tenant": "a"}, "give --from-cache with it"),
    ],
)
def test_mistakes_are_one_line(arguments, capsys, others, says):
    assert main(arguments(**others)) == 1
    message = capsys.readouterr().err
    assert says in message and message.count("\n") == 1


def test_a_price_that_is_none_is_refused(arguments, capsys):
    assert main(arguments("--prices", "cheap", "1/2")) == 1
    assert "'cheap' is no price" in capsys.readouterr().err


def test_what_is_there_is_not_replaced(arguments, tmp_path, capsys):
    (tmp_path / "router.json").write_text("mine")
    assert main(arguments()) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "router.json").read_text() == "mine"


def test_a_large_tier_that_is_cheaper_is_refused(arguments, capsys):
    assert main(arguments("--prices", "2/2", "1/1")) == 1
    assert "costs 2.00 times one of the large tier" in capsys.readouterr().err


def test_what_a_cache_was_asked_is_asked_of_both_tiers(tiers, arguments, tmp_path, capsys):
    with CompletionCache(tmp_path / "cache") as cache:
        for place in range(200):
            text = f"list {chr(97 + place % 26)}{chr(97 + place // 26)} {'hard' if place % 2 else 'soft'}"
            prompt = WholePrompt("m", messages=[{"role": "user", "content": text}])
            cache.store(make_key(place, "acme"), make_completion(place, 20), prompt=prompt)
        cache.flush()
    given = arguments("--from-cache", "--tenant", "acme", data=None, qualities="0.8")
    assert main([*given, "--cache-path", str(tmp_path / "cache")]) == 0
    printed, said = capsys.readouterr()
    assert "200 examples of tenant 'acme' from the cache" in said
    assert "200 different questions of the cache; an answer is right where it says the same" in printed
    assert "acme" not in printed
    assert tiers.asked == {"small": 201, "large": 201}


def test_a_small_tier_that_loses_nothing_needs_no_router(arguments, tmp_path, capsys):
    data = tmp_path / "questions.jsonl"
    data.write_text(data.read_text().replace("hard", "soft"))
    assert main(arguments()) == 1
    assert "Serve it alone; there is nothing to route." in capsys.readouterr().err


def test_models_are_served_for_it_where_no_server_is_named(tmp_path, capsys):
    small, large = (
        write_tiny_model(tmp_path / name, seed=seed) for name, seed in (("small", 1), ("large", 2))
    )
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": f"count to {place}"}) + "\n" for place in range(120)))
    given = ["tune", "router", "--tiers", str(small), str(large), "--names", "little", "big"]
    given += ["--data", str(data), "--score", "agreement", "--max-tokens", "4", "--qualities", "0.5"]
    given += ["--prices", "1/1", "9/9", "--output", str(tmp_path / "router.json"), "--force"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "# Router between `little` and `big`" in printed
    # Their answers are random: none agrees, which no judge can help.
    assert "cascade: not recommended" in printed and "without log-probabilities" not in printed
    figures = json.loads((tmp_path / "router.figures.json").read_bytes())
    assert figures["questions"] == 120 and figures["learned"]["small_right"]["value"] < 0.1
    Judge.load(tmp_path / "router.json")
