"""Outputs that must obey a grammar, from a random model that would otherwise write noise."""

import json
import random
import re

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from steady_clock import SteadyClock

from penstock import Engine, EngineConfig, InvalidRequestError, SamplingParams
from penstock.models.tokenizer import Tokenizer
from penstock.scheduler.draft_length import LENGTHS
from penstock.scheduler.grammar import MAX_SOURCE, Grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ann", "Bob"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny_llama) -> Engine:
    engine = Engine(
        EngineConfig(model=str(tiny_llama), quantize="w8a8", max_model_len=1024, kv_cache_tokens=4096)
    )
    engine.clock = SteadyClock()  # what steps have taken decides how much is guessed
    return engine


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(str(tiny_llama))


def text_of(
    engine: Engine, tokenizer: Tokenizer, params: SamplingParams, prompt=(5, 6, 7)
) -> tuple[str, str]:
    (completion,) = engine.generate([list(prompt)], params, tokenizer=tokenizer, progress=False)[
        0
    ].completions
    engine.check()
    return completion.text, completion.finish_reason


def asked(grammar: Grammar, **kwargs) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "seed": 1, "max_tokens": 200, "grammar": grammar, **kwargs})


@pytest.mark.parametrize("seed", range(4))
def test_json_of_a_schema(engine, tokenizer, seed):
    text, reason = text_of(engine, tokenizer, asked(Grammar.of_json_schema(PERSON), seed=seed))
    jsonschema.validate(json.loads(text), PERSON)
    assert reason == "stop"


def test_a_regex(engine, tokenizer):
    text, reason = text_of(engine, tokenizer, asked(Grammar("regex", r"[a-c]{3}-[0-9]{2}")))
    assert re.fullmatch(r"[a-c]{3}-[0-9]{2}", text) and reason == "stop"


def test_a_context_free_grammar(engine, tokenizer):
    nested = Grammar("lark", 'start: "(" start ")" | "x"')
    text, reason = text_of(
        engine, tokenizer, asked(nested, logit_bias=dict.fromkeys(tokenizer.encode("x"), 3.0))
    )
    depth = text.index("x")
    assert text == "(" * depth + "x" + ")" * depth and reason == "stop"


def test_what_must_follow_is_guessed_and_right(engine, tokenizer):
    grammar = Grammar("regex", "a constant of some length, (yes|no)")
    before = engine.stats.steps
    text, _ = text_of(engine, tokenizer, asked(grammar))
    taken = engine.stats.steps - before
    plain, _ = text_of(engine, tokenizer, asked(grammar, drafters=()))
    assert text == plain
    assert taken < (engine.stats.steps - before - taken) / 2
    assert engine.stats.drafters["grammar"].accepted > 10


def test_a_wrong_grammar_fails_its_own_request_only(engine, tokenizer):
    engine.add_request("good", [5, 6], asked(Grammar.of_json_schema(PERSON)))
    engine.add_request("bad", [5, 6], asked(Grammar.of_json_schema({"type": "nonsense"}), n=2))
    engine.add_request("plain", [5, 6], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    refused, ended = [], []
    while engine.has_work():
        ended += [delta.request_id for delta in engine.step() if delta.finish_reason]
        refused += engine.take_refused()
        engine.check()
    assert sorted(ended) == ["good", "plain"]
    ((request_id, error),) = refused
    assert request_id == "bad" and error.param == "response_format" and "nonsense" in error.message
    with pytest.raises(InvalidRequestError, match=r"regex cannot be compiled"):
        text_of(engine, tokenizer, asked(Grammar("regex", "(")))
    assert not engine.has_work() and engine.stats.kv_blocks_used == 0


def test_a_grammar_beyond_the_limits_of_a_step_ends_its_own_sequence_only(engine, tokenizer):
    """It compiles; its first tokens are too much work."""
    engine.add_request("much", [5, 6, 7], asked(Grammar("regex", "(a|b|ab)*c{1000000}")))
    engine.add_request("fine", [5, 6, 7], SamplingParams(max_tokens=20, ignore_eos=True))
    ends = {}
    while engine.has_work():
        for delta in engine.step():
            if delta.finish_reason:
                ends[delta.request_id] = delta
    engine.check()
    assert ends["fine"].finish_reason == "length"
    assert ends["much"].finish_reason == "error" and ends["much"].param == "guided_regex"
    assert "too many expressions" in ends["much"].error


def test_who_leaves_while_the_grammar_compiles_leaves_nothing(engine):
    schema = {
        "type": "object",
        "properties": {f"k{i}": {"type": "string", "maxLength": i} for i in range(200)},
    }
    for number in range(5):
        engine.add_request(
            str(number), [5, 6], asked(Grammar.of_json_schema({**schema, "title": str(number)}), n=2)
        )
    for number in range(4):
        engine.abort(str(number))
        engine.check()
    while engine.has_work():
        assert all(delta.request_id == "4" for delta in engine.step())
        engine.check()
    assert not engine._live and not engine.scheduler.held


def test_grammars_are_checked_at_the_edge():
    with pytest.raises(InvalidRequestError, match="must be an object"):
        Grammar.of_json_schema([1])
    with pytest.raises(InvalidRequestError, match=str(MAX_SOURCE)):
        Grammar("regex", "a" * (MAX_SOURCE + 1))
    with pytest.raises(InvalidRequestError, match="min_tokens"):
        asked(Grammar("regex", "a"), min_tokens=2)


def test_several_completions_and_preemption(tiny_llama, tokenizer):
    """Matchers go with their sequences when blocks run out."""
    tight = Engine(
        EngineConfig(
            model=str(tiny_llama), quantize="w8a8", max_model_len=256, kv_cache_tokens=288, block_size=16
        )
    )
    roomy = Engine(EngineConfig(model=str(tiny_llama), quantize="w8a8", max_model_len=256))
    params = asked(Grammar("regex", "([a-z]{2,6} ){30}end"), n=4, drafters=())
    found = [
        [
            completion.text
            for completion in one.generate([[5] * 20], params, tokenizer=tokenizer, progress=False)[
                0
            ].completions
        ]
        for one in (tight, roomy)
    ]
    assert found[0] == found[1] and tight.stats.preemptions > 0
    assert all(re.fullmatch("([a-z]{2,6} ){30}end", text) for text in found[0])


NAMES = st.sampled_from(["id", "name", "tags", "x", "is ok", "größe", 'a"b'])
ENUMS = st.sampled_from([1, "one", None, True, 2.5, [1], {"a": 1}])


def ranges(kind: str, low_name: str, high_name: str, low: st.SearchStrategy[int]) -> st.SearchStrategy[dict]:
    return st.builds(lambda a, span: {"type": kind, low_name: a, high_name: a + span}, low, st.integers(1, 9))


SCALARS = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"const": "x"}, {"const": 7}]),
    ranges("integer", "minimum", "maximum", st.integers(-99, 999)),
    ranges("number", "minimum", "maximum", st.integers(-9, 9)),
    ranges("string", "minLength", "maxLength", st.integers(0, 3)),
    st.builds(lambda count: {"type": "string", "pattern": f"^[a-f0-9]{{{count}}}$"}, st.integers(1, 6)),
    st.sampled_from([{"type": "string", "format": name} for name in ("date", "time", "uuid", "ipv4")]),
    st.builds(lambda values: {"enum": values}, st.lists(ENUMS, min_size=1, max_size=3, unique_by=repr)),
)


@st.composite
def objects(draw, inner):
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    required = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    extra = draw(st.sampled_from([False, False, {"type": "boolean"}]))
    schema = {"type": "object", "properties": {name: draw(inner) for name in names}, "required": required}
    # Unbounded, a random model would go on adding properties for ever.
    return {
        **schema,
        "additionalProperties": extra,
        **({"maxProperties": len(names) + 1} if extra and not names else {}),
    }


def containers(inner):
    arrays = st.builds(
        lambda item, low, span: {"type": "array", "items": item, "minItems": low, "maxItems": low + span},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    tuples = st.builds(
        lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)},
        st.lists(inner, min_size=1, max_size=3),
    )
    either = st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))
    return st.one_of(objects(inner), arrays, tuples, either)


SCHEMAS = st.recursive(SCALARS, containers, max_leaves=6)
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


def check_schemas(engine: Engine, tokenizer: Tokenizer, count: int) -> None:
    """Whatever is written is an instance of its schema, whatever was guessed in between."""
    rng = random.Random(0)
    engine.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(
        limit, rng.choice([0, 1, 3, *LENGTHS])
    )
    # A random model may write white space, digits, and items where more are allowed, for ever.
    bias = {token: -100.0 for token in range(engine.info.vocab_size) if not tokenizer.decode([token]).strip()}
    bias |= dict.fromkeys([*tokenizer.encode('],}"'), *engine.info.eos_token_ids], 8.0)

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(schema=SCHEMAS, seed=st.integers(0, 2**32))
    def every_output_is_valid(schema, seed):
        draft = None
        for each in (seed, seed + 1):
            # The second is guessed from another instance: a half-right draft.
            params = asked(Grammar.of_json_schema(schema), seed=each, max_tokens=900, logit_bias=bias)
            engine.add_request("x", [5, 6], params, draft_token_ids=draft)
            draft, reason = [], None
            while engine.has_work():
                for delta in engine.step():
                    draft += delta.token_ids
                    reason = delta.finish_reason
                assert not (refused := engine.take_refused()), refused
            text = tokenizer.decode(draft)
            assert reason == "stop", text
            jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text))
        nonlocal checked
        checked += 1

    checked = 0
    every_output_is_valid()
    assert checked >= count * 0.9
    assert engine.stats.drafters["draft"].accepted and engine.stats.drafters["grammar"].accepted


def test_random_schemas(engine, tokenizer):
    check_schemas(engine, tokenizer, 40)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_random_schemas(engine, tokenizer):
    check_schemas(engine, tokenizer, 560)
