"""What steps are expected to take, of sizes that were seen and of others."""

import pytest

from penstock.scheduler import Engine, EngineConfig, SamplingParams
from penstock.scheduler.step_times import FIRST_STEPS, StepTimes


def times_of(seconds: dict[int, float], steps: int = FIRST_STEPS) -> StepTimes:
    found = StepTimes()
    for tokens, took in seconds.items():
        for _ in range(steps):
            found.record(tokens, took)
    return found


def test_a_size_never_seen_is_on_the_line_between_its_neighbours():
    times = times_of({8: 0.02, 16: 0.03, 64: 0.09})
    assert times.seconds(12) == pytest.approx(0.025) and times.seconds(40) == pytest.approx(0.06)
    assert times.seconds(3) == 0.02 and times.seconds(128) == pytest.approx(0.17)


def test_what_prompts_cost_a_step_of_any_size_is_where_the_line_arrives():
    linear = {tokens: 0.031 + 0.0001 * tokens for tokens in (72, 100, 200, 400)}
    assert times_of(linear).seconds_of_nothing_more(64, 0, 288) == pytest.approx(0.0374)
    assert times_of({8: 0.1, 16: 0.2, 32: 0.4}).seconds_of_nothing_more(4, 0, 50) == pytest.approx(0.05)


def test_one_slow_size_does_not_speak_for_all():
    seconds = {10: 0.10, 16: 0.16, 40: 0.40, 100: 1.0}
    slow = {**seconds, 10: 0.5}
    assert times_of(slow).seconds_of_nothing_more(8, 0, 64) == pytest.approx(0.08)
    assert times_of(slow, steps=FIRST_STEPS - 1).seconds_of_nothing_more(8, 0, 64) is None


@pytest.mark.parametrize(
    "seconds", [{}, {16: 0.2}, {4: 0.1, 8: 0.2}, {100: 1.0, 110: 1.1}], ids=["none", "one", "smaller", "near"]
)
def test_of_too_few_sizes_nothing_is_concluded(seconds: dict[int, float]):
    assert times_of(seconds).seconds_of_nothing_more(8, 0, 1000) is None


def test_keys_of_a_long_prompt_are_no_cost_of_any_size():
    """Contexts grow, and with them what each size takes; without them a step is on one line."""
    times = StepTimes()
    for step in range(400):
        tokens = (10, 16, 64)[step % 3]
        keys = tokens * step * 20
        times.record(tokens, 0.01 + 0.001 * tokens + 1e-8 * keys, keys)
    found = times.seconds_of_nothing_more(8, 0, 64)
    assert found == pytest.approx(0.018, abs=0.002)


def test_the_engine_tells_steps_with_prompts_from_others(tiny_llama):
    engine = Engine(EngineConfig(model=str(tiny_llama), max_model_len=128, kv_cache_tokens=256))
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    engine.generate([list(range(3, 43))], params, progress=False)
    sizes = [
        [own.tokens for own in times._classes.values()]
        for times in (engine.prompt_times, engine.decode_times)
    ]
    assert sizes == [[40], [1]]
