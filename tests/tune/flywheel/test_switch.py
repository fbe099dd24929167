"""The settings file with a student: what is written loads and serves, and going back gives the same bytes."""

import asyncio
import os
import stat
import tomllib

import aiohttp
import pytest
from simple_router import QUALITY, write_router
from tiny_model import write_tiny_model

from penstock.config import load_settings
from penstock.errors import ConfigError
from penstock.tune.flywheel.settings import InService, Names, Routed, alone, changes, laid_over, measured
from penstock.tune.flywheel.settings_text import with_changes
from penstock.tune.flywheel.switch import back, switch
from penstock.tune.own_server import own_server

TEXT = """\
# The app's server.
model = "builtin"     # the large one
api_keys = ["secret-key"]
local_hour_price = 1.5

[upstreams.other]
base_url = "http://127.0.0.1:1/v1"
models = ["m"]

[routes.quick]
targets = ["builtin", "other/m"]
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "penstock.toml"
    file.write_text(TEXT)
    file.chmod(0o600)
    return file


def loads(file):
    load_settings({"config": str(file)}, {})


def settings_of(text, tmp_path):
    file = tmp_path / "loaded.toml"
    file.write_text(text)
    return load_settings({"config": str(file)}, {})


def made(tmp_path, settings, *, drafts=True, policy="cascade", shadowed=True):
    student = tmp_path / "out" / "student"
    route = Routed(policy, tmp_path / "out" / "router.json", 0.95, shadowed)
    return changes(InService(student, "w8a8", route, drafts), Names.of(settings), settings)


def test_the_route_has_the_models_name_and_comments_stay(file, tmp_path):
    settings = load_settings({"config": str(file)}, {})
    text = with_changes(TEXT, made(tmp_path, settings))
    assert TEXT in text
    new = settings_of(text, tmp_path)
    route = new.routes["builtin"]
    assert (
        route.policy == "cascade"
        and route.targets == ("builtin-student", "builtin")
        and route.quality == 0.95
    )
    assert route.shadow_share and route.router == tmp_path / "out" / "router.json"
    assert new.tiers["builtin-student"].model == str(tmp_path / "out" / "student")
    assert new.tiers["builtin-student"].quantize == "w8a8"
    assert new.draft_model == str(tmp_path / "out" / "student") and new.draft_quantize == "w8a8"
    assert new.model_aliases == {"builtin-large": "builtin"}
    assert new.routes["quick"] == settings.routes["quick"] and new.local_hour_price == 1.5


def test_other_names_of_the_model_lead_to_the_route_too(tmp_path):
    text = 'model_aliases = { gpt = "builtin", "*" = "builtin" }\ndraft_model = "old"\n'
    text += '[routes.builtin]\ntargets = ["builtin"]\n'
    settings = settings_of(text, tmp_path)
    changed = with_changes(text, made(tmp_path, settings, shadowed=False))
    new = settings_of(changed, tmp_path)
    assert new.routes["gpt"] == new.routes["builtin"] and new.routes["builtin"].policy == "cascade"
    assert not new.routes["builtin"].shadow_share
    assert new.model_aliases == {"gpt": "builtin", "*": "builtin", "builtin-large": "builtin"}
    assert new.draft_model == str(tmp_path / "out" / "student") and "*" not in new.routes
    # A second turn takes the place of the first.
    service = InService(
        tmp_path / "next", "w8a8", Routed("predictive", tmp_path / "r.json", 0.9, False), False
    )
    again = changes(service, Names.of(new), new)
    third = settings_of(with_changes(changed, again), tmp_path)
    assert list(third.tiers) == ["builtin-student"] and third.tiers["builtin-student"].model == str(
        tmp_path / "next"
    )
    assert third.routes["builtin"].policy == third.routes["gpt"].policy == "predictive"


def test_a_name_that_no_table_may_have_is_made_one(tmp_path):
    names = Names.of(settings_of('model = "owner/A model"', tmp_path))
    assert names == Names("owner/A model", "owner/A model-large", "owner-A-model-student")
    names = Names.of(settings_of(f'served_model_name = "{"x" * 90}"', tmp_path))
    assert len(names.small) == 64


def test_what_is_measured_is_alone_and_without_keys():
    present = tomllib.loads(TEXT) | {"port": 80, "workers": 4, "max_num_seqs": 8}
    served = measured(present, {"draft_model": "d", "routes": {"builtin": {"targets": ["x"]}}})
    assert served["max_num_seqs"] == 8 and served["draft_model"] == "d" and not served["cache"]
    assert set(served["routes"]) == {"quick", "builtin"} and served["workers"] == 1
    assert not {"api_keys", "port"} & set(served)
    assert not {"routes", "upstreams", "tiers"} & set(alone(served))
    assert laid_over({"a": {"x": {"old": 1}}}, {"a": {"x": {}}}) == {"a": {"x": {}}}


def test_there_and_back(file, tmp_path):
    changed = made(tmp_path, load_settings({"config": str(file)}, {}))
    before = switch(file, changed, loads)
    assert before.read_text() == TEXT and file.read_text() == with_changes(TEXT, changed)
    for kept in (file, before):
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="was switched before"):
        switch(file, changed, loads)
    assert back(file, force=False) == []
    assert file.read_text() == TEXT and [path.name for path in tmp_path.glob("penstock*")] == [
        "penstock.toml"
    ]
    with pytest.raises(ConfigError, match="did not switch"):
        back(file, force=False)


def test_settings_that_could_not_be_served_are_not_switched_to(file):
    with pytest.raises(ConfigError, match="unknown setting 'draft_modell'"):
        switch(file, {"draft_modell": "d"}, loads)
    assert file.read_text() == TEXT and [path.name for path in file.parent.iterdir()] == ["penstock.toml"]


def test_line_ends_stay_as_they_are(file):
    content = TEXT.replace("\n", "\r\n").encode()
    file.write_bytes(content)
    switch(file, {"draft_model": "d"}, loads)
    assert content in file.read_bytes()
    back(file, force=False)
    assert file.read_bytes() == content


def test_a_link_stays_one(file, tmp_path):
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    switch(link, {"draft_model": "d"}, loads)
    assert link.is_symlink() and "draft_model" in file.read_text()
    back(link, force=False)
    assert link.is_symlink() and file.read_text() == TEXT


def test_going_back_says_what_would_be_lost_but_for_keys(file):
    switch(file, {"draft_model": "d"}, loads)
    file.write_text(file.read_text().replace("1.5", "2.5").replace("secret-key", "other-key"))
    with pytest.raises(ConfigError) as refused:
        back(file, force=False)
    message = refused.value.message
    assert "-local_hour_price = 1.5" in message and "+local_hour_price = 2.5" in message
    assert "+api_keys = (not shown)" in message and "other-key" not in message
    assert "2.5" in file.read_text()
    assert len(back(file, force=True)) == 4 and file.read_text() == TEXT


def test_a_switch_that_was_cut_short_is_put_back(file, monkeypatch):
    replaced, real = [], os.replace

    def cut(one, other):
        replaced.append(other)
        if len(replaced) == 3:
            raise OSError(28, "No space left on device")
        real(one, other)

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(ConfigError, match="cannot be switched: No space left on device"):
        switch(file, {"draft_model": "d"}, loads)
    monkeypatch.undo()
    assert file.read_text() == TEXT
    assert back(file, force=False) == [] and not list(file.parent.glob("*.before"))


async def ask(url, model):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "well?"}],
        "max_tokens": 4,
        "temperature": 0,
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as reply,
    ):
        assert reply.status == 200, await reply.text()
        return reply.headers["x-penstock-model"], reply.headers.get("x-penstock-route", "")


def test_what_comes_out_serves_under_the_same_name(tmp_path):
    teacher = write_tiny_model(tmp_path / "tiny", seed=0)
    student = write_tiny_model(tmp_path / "out", seed=1)
    text = f'model = "{teacher}"\ncache = false\ntenants = false\nembedding_model = "none"\nthreads = 1\n'
    settings = settings_of(text, tmp_path)
    names = Names.of(settings)
    router = write_router(tmp_path / "router.json", names.small, names.asked)
    changed = changes(
        InService(student, "none", Routed("cascade", router, QUALITY, True), True), names, settings
    )
    file = tmp_path / "penstock.toml"
    file.write_text(text)
    switch(file, changed, loads)

    async def asked(url):
        return [await ask(url, name) for name in ("tiny", "tiny-large", "tiny-student")]

    with own_server(["--config", str(file)]) as url:
        routed, large, small = asyncio.run(asked(url))
    assert routed[0] == "tiny-student" and routed[1].startswith("cascade; kept")
    assert large == ("tiny", "") and small == ("tiny-student", "")
