"""What an engine answers, token for token, for tests that compare two ways of computing it."""

from penstock.scheduler import Engine, SamplingParams


def params(max_tokens: int, **changes) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 1, **changes}
    )


def answers(engine: Engine, requests: list[tuple[list[int], SamplingParams]]):
    """Tokens and log-probabilities of each request, all sent at once."""
    for number, (prompt, params) in enumerate(requests):
        engine.add_request(str(number), prompt, params)
    found: dict[str, tuple[list, list]] = {}
    while engine.has_work():
        for delta in engine.step():
            tokens, logprobs = found.setdefault(delta.request_id, ([], []))
            tokens += delta.token_ids
            logprobs += delta.logprobs or []
        engine.check()
    return found
