"""What a model name stands for."""

import pytest

from penstock.errors import ConfigError, ModelNotFoundError
from penstock.proxy.backend import Backend
from penstock.proxy.backends import Backends
from penstock.proxy.routing.plan import Ask
from penstock.proxy.routing.router import Router
from penstock.scheduler import AsyncEngine
from penstock.tables import Route, Upstream, UpstreamModel

ASK = Ask(100, 100)
UPSTREAMS = {
    "one": Upstream(
        base_url="http://one/v1",
        models={"gpt": UpstreamModel(name="gpt-4o", input=1.0, output=2.0), "own": UpstreamModel()},
    ),
    "two": Upstream(base_url="http://two/v1", models=["gpt", "*"]),
}


def router(
    routes: dict[str, Route] | None = None,
    *,
    aliases: dict[str, str] | None = None,
    local: bool = True,
    down: str = "",
) -> Router:
    backend = None
    if local:
        backend = Backend("builtin", AsyncEngine.connect("nowhere"), served_name="tiny", aliases=aliases)
    return Router(
        Backends(backend),
        UPSTREAMS,
        routes or {},
        healthy=lambda target: not down or not target.name.startswith(down),
        cost=lambda target, _ask: None,
        draw=lambda: 0.0,
    )


def planned(made: Router, name: str) -> list[str]:
    return [target.name for target in made.plan(name, ASK).targets]


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("tiny", ["tiny"]),
        ("gpt", ["one/gpt-4o", "two/gpt"]),
        ("own", ["one/own"]),
        ("one/gpt", ["one/gpt-4o"]),
        ("two/gpt", ["two/gpt"]),
        ("two/org/any-name", ["two/org/any-name"]),
        ("any-name", ["two/any-name"]),
    ],
)
async def test_names(name: str, targets: list[str]) -> None:
    assert planned(router(), name) == targets


async def test_an_upstream_without_a_star_takes_its_own_names_only() -> None:
    assert planned(router(), "one/other") == [
        "two/one/other"
    ]  # a name like any other for the one that has it


async def test_a_route_comes_before_a_model_of_its_name() -> None:
    made = router({"gpt": Route(targets=("tiny", "two/gpt"))})
    assert planned(made, "gpt") == ["tiny", "two/gpt"]


async def test_the_local_model_may_take_any_name_but_those_of_upstreams() -> None:
    made = router(aliases={"*": "tiny"})
    assert planned(made, "whatever") == ["tiny"]
    assert planned(made, "own") == ["one/own"]
    assert planned(made, "two/whatever") == ["two/whatever"]


async def test_of_two_upstreams_the_healthy_one_is_asked_first() -> None:
    assert planned(router(down="one"), "gpt") == ["two/gpt", "one/gpt-4o"]


async def test_names_that_can_be_asked_for() -> None:
    assert router({"r": Route(targets=("tiny",))}).names == ["r", "tiny", "gpt", "own"]


async def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    made = Router(
        Backends(None),
        {"one": UPSTREAMS["one"]},
        {},
        healthy=lambda _t: True,
        cost=lambda _t, _a: None,
        draw=lambda: 0.0,
    )
    with pytest.raises(
        ModelNotFoundError, match=r"'other' does not exist here; served are: gpt, own\."
    ) as caught:
        made.plan("other", ASK)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("target", "says"),
    [("gpt", "'gpt', which stands for several upstreams"), ("r", "'r', which is nothing that is served")],
)
async def test_a_route_to_what_is_not_one_thing_is_refused(target: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Router(
            Backends(None),
            {"one": UPSTREAMS["one"], "two": Upstream(base_url="http://two/v1", models=["gpt"])},
            {"r": Route(targets=(target,))},
            healthy=lambda _t: True,
            cost=lambda _t, _a: None,
        )
