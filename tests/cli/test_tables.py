"""Upstreams and routes of the settings file: what is wrong is named, with the remedy."""

from pathlib import Path

import pytest

from penstock.config import Settings, load_settings
from penstock.errors import ConfigError

URL = "base_url = 'https://api.example/v1'"


def settings(folder: Path, text: str, **environment: str) -> Settings:
    file = folder / "penstock.toml"
    file.write_text(text)
    return load_settings({"config": str(file)}, environment)


def test_a_whole_table(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-file\n")
    read = settings(
        tmp_path,
        f"""
        [upstreams.openai]
        {URL}
        api_key_env = "THE_KEY"
        retries = 5
        [upstreams.openai.models."gpt-4o-mini"]
        input = 0.15
        output = 0.6
        [upstreams.other]
        {URL}
        format = "anthropic"
        api_key_file = "{tmp_path / "key"}"
        models = ["claude", "*"]
        [routes.quick]
        targets = ["openai/gpt-4o-mini", "other/claude"]
        policy = "weighted"
        weights = [3, 1]
        """,
        THE_KEY=" sk-env ",
    )
    openai, other = read.upstreams["openai"], read.upstreams["other"]
    assert openai.api_key is not None and openai.api_key.value == "sk-env"
    assert other.api_key is not None and other.api_key.value == "sk-file"
    assert (openai.retries, openai.known_models["gpt-4o-mini"].output, other.format) == (5, 0.6, "anthropic")
    assert list(other.known_models) == ["claude", "*"]
    assert read.routes["quick"].weights == (3.0, 1.0)
    assert "sk-" not in repr(read)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("base_url = 'api.example'", "base_url is 'api.example'; it must begin with http"),
        ("", "base_url"),
        (f"{URL}\nbase_ulr = 1", "base_ulr"),
        (f"{URL}\nformat = 'cohere'", "format"),
        (f"{URL}\nretries = -1", "retries is -1; it must be at least 0"),
        (f"{URL}\nretries = 'many'", "retries"),
        (f"{URL}\nidle_timeout = 0", "idle_timeout is 0.* must be a number of seconds above 0"),
        (f"{URL}\ntotal_timeout = inf", "total_timeout is inf"),
        (f"{URL}\nconnect_timeout = nan", "connect_timeout is nan"),
        (f"{URL}\nmax_connections = 0", "max_connections is 0; it must be at least 1"),
        (f"{URL}\nbreaker_failures = 0", "breaker_failures is 0; it must be at least 1"),
        (f"{URL}\nhedge_percentile = 95", "hedge_percentile is 95.* between 0 and 1, as 0.95"),
        (f"{URL}\napi_key_env = 'A'\napi_key_file = '/b'", "leave one out"),
        (f"{URL}\napi_key_env = 'ABSENT'", "The variable ABSENT holds no key"),
        (f"{URL}\napi_key_file = '/absent/key'", "/absent/key cannot be read"),
        (f"{URL}\n[upstreams.up.models.m]\ninput = -1", "price input is -1.* must be 0 or more"),
        (f"{URL}\n[upstreams.up.models.m]\nprice = 1", "price"),
        (f"{URL}\n[upstreams.up.models.m]\noutput = inf", "price output is inf"),
    ],
)
def test_a_wrong_upstream(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(tmp_path, f"[upstreams.up]\n{table}")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("targets = []", "targets is empty; name a model"),
        ("", "targets"),
        ("targets = ['a']\npolicy = 'fastest'", "policy"),
        ("targets = ['a']\npolicy = 'weighted'", "go together"),
        ("targets = ['a']\nweights = [1]", "go together"),
        ("targets = ['a', 'b']\npolicy = 'weighted'\nweights = [1]", "1 weights for 2 targets"),
        ("targets = ['a']\npolicy = 'weighted'\nweights = [0]", "one of them above 0"),
        ("targets = ['a', 'b']\npolicy = 'weighted'\nweights = [2, -1]", "must be 0 or more"),
        ("targets = ['a']\nweight = [1]", "weight"),
    ],
)
def test_a_wrong_route(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(tmp_path, f"[routes.r]\n{table}")


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="called 'a/b'; use up to 64 letters"):
        settings(tmp_path, f"[upstreams.'a/b']\n{URL}")


def test_a_key_in_the_file_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, f"[upstreams.up]\n{URL}\napi_key = {{value = 'sk-secret'}}")
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, f"[upstreams.up]\n{URL}\napi_key = 'sk-secret'")
    assert "sk-secret" not in str(caught.value)


def test_a_key_that_no_header_can_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no key") as caught:
        settings(tmp_path, f"[upstreams.up]\n{URL}\napi_key_env = 'K'", K="sk-ü-secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("http://api.example.com/v1", True),
        ("https://api.example.com/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://localhost/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://10.1.2.3/v1", False),
        ("http://172.20.0.1/v1", False),
        ("http://172.32.0.1/v1", True),
        ("http://vllm:8000/v1", False),
        ("http://localhost.evil.example/v1", True),
        ("http://127.evil.example/v1", True),
        ("http://10.evil.example/v1", True),
    ],
)
def test_a_key_in_clear_is_noticed(tmp_path: Path, url: str, clear: bool) -> None:
    up = settings(tmp_path, f"[upstreams.up]\nbase_url = '{url}'\napi_key_env = 'K'", K="sk").upstreams["up"]
    assert up.sends_key_in_clear is clear


def test_tiers_have_settings_of_their_own(tmp_path: Path) -> None:
    read = settings(
        tmp_path,
        """
        model = "/models/large"
        max_num_seqs = 8
        [tiers.small]
        model = "/models/small"
        quantize = "w8a8"
        hour_price = 0.5
        """,
    )
    small = read.tiers["small"]
    assert (small.model, small.quantize, small.hour_price) == ("/models/small", "w8a8", 0.5)
    assert (read.max_num_seqs, small.max_num_seqs) == (8, 64)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tiers.small]\nquantize = 'w8a8'", r"tiers\.small.*`model`"),
        ("[tiers.small]\nmodel = 'm'\nport = 1", r"tiers\.small.*`port`"),
        (
            "[tiers.small]\nmodel = 'm'\nhour_price = -1",
            r"tiers\.small: hour_price is -1\.0; it must be 0 or more",
        ),
        ("[tiers.'a/b']\nmodel = 'm'", "A tier is called 'a/b'"),
        (
            f"model = 'none'\n[tiers.small]\nmodel = 'm'\n[upstreams.up]\n{URL}",
            "model is 'none', but there are tiers",
        ),
    ],
)
def test_a_wrong_tier_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(tmp_path, text)


LEARNED = "targets = ['a', 'b']\npolicy = 'cascade'\nrouter = 'router.json'"


def test_a_route_with_a_judge(tmp_path: Path) -> None:
    text = f"[routes.best]\n{LEARNED}\nquality = 0.95\nbuffer_tokens = 8\nshadow_share = 0.1\nshadow_budget = 1000"
    best = settings(tmp_path, text).routes["best"]
    assert best.is_learned and best.router == Path("router.json")
    assert (best.quality, best.buffer_tokens, best.shadow_share, best.shadow_budget) == (0.95, 8, 0.1, 1000)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            "targets = ['a', 'b']\nrouter = 'r'",
            'router is for policy = "cascade" or "predictive", not "fixed"',
        ),
        ("targets = ['a', 'b']\npolicy = 'cascade'", 'needs router = "FILE"'),
        ("targets = ['a', 'b', 'c']\npolicy = 'predictive'\nrouter = 'r'", "has two targets.*not 3"),
        (f"{LEARNED}\nquality = 1.5", "quality is 1.5"),
        (f"{LEARNED}\nbuffer_tokens = -1", "buffer_tokens is -1"),
        (
            "targets = ['a', 'b']\npolicy = 'predictive'\nrouter = 'r'\nbuffer_tokens = 4",
            "buffer_tokens is 4",
        ),
        (f"{LEARNED}\nquality = 0.9\nshadow_share = 2.0\nshadow_budget = 1", "shadow_share is 2.0"),
        (f"{LEARNED}\nquality = 0.9\nshadow_share = 0.5", "give both, or neither"),
    ],
)
def test_a_wrong_route_with_a_judge_is_named(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"routes.best.*{says}"):
        settings(tmp_path, f"[routes.best]\n{table}")


def test_what_its_engine_would_refuse_names_the_tier(tmp_path: Path) -> None:
    from penstock.proxy.server import tier_configs

    read = settings(tmp_path, "[tiers.small]\nmodel = 'builtin'\nmax_num_seqs = 0")
    with pytest.raises(ConfigError) as caught:
        tier_configs(read)
    assert caught.value.message.startswith("tiers.small: max_num_seqs is 0; it must")
