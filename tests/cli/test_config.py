"""Settings: precedence, types, and messages that help."""

import argparse
from pathlib import Path

import pytest

from penstock.config import TABLE, Settings, SparseAttention, add_arguments, load_settings
from penstock.errors import ConfigError
from penstock.proxy.server import engine_config
from penstock.scheduler import EngineConfig

ALL_GROUPS = ("model", "server", "cache", "tenants", "engine")


def flags(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_arguments(parser, groups=ALL_GROUPS)
    return vars(parser.parse_args(arguments))


def toml(folder: Path, text: str) -> str:
    file = folder / "penstock.toml"
    file.write_text(text)
    return str(file)


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = 1\nhost = 'file'\nmax_num_seqs = 3")
    settings = load_settings(
        flags("--config", file, "--port", "3"),
        {"PENSTOCK_PORT": "2", "PENSTOCK_HOST": "environment", "HOME": "/x"},
    )
    assert (settings.port, settings.host, settings.max_num_seqs) == (3, "environment", 3)
    assert settings.workers == Settings().workers


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    assert load_settings({}, {"PENSTOCK_CONFIG": toml(tmp_path, "port = 9")}).port == 9


def test_keys_are_not_kept_where_a_cache_may_be_emptied() -> None:
    settings = load_settings({}, {"XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "/c"})
    assert settings.tenants_path == Path("/d/penstock/tenants")
    assert settings.cache_path == Path("/c/penstock/completions")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "1234", 1234),
        ("cache", "off", False),
        ("cache", "true", True),
        ("write_timeout", "2.5", 2.5),
        ("api_keys", "a, b", ("a", "b")),
        ("model_aliases", "gpt-4o=m, *=m", {"gpt-4o": "m", "*": "m"}),
        ("cache_path", "/tmp/x", Path("/tmp/x")),
        ("served_model_name", "7", "7"),
        ("threads", "2", 2),
    ],
)
def test_text_becomes_typed(name: str, text: str, value: object) -> None:
    assert getattr(load_settings({}, {f"PENSTOCK_{name.upper()}": text}), name) == value
    if not isinstance(value, bool):
        assert getattr(load_settings(flags(f"--{name.replace('_', '-')}", text), {}), name) == value


def test_the_access_log_was_a_switch_and_still_is_one(tmp_path: Path) -> None:
    spellings = {"on": "text", "true": "text", "off": "off", "text": "text", "json": "json"}
    for text, form in spellings.items():
        assert load_settings({}, {"PENSTOCK_ACCESS_LOG": text}).access_log == form
    for value, form in {"true": "text", "false": "off", "'json'": "json"}.items():
        file = toml(tmp_path, f"access_log = {value}")
        assert load_settings(flags("--config", file), {}).access_log == form
    assert load_settings(flags("--access-log"), {}).access_log == "text"
    assert load_settings(flags("--access-log", "json"), {}).access_log == "json"
    with pytest.raises(ConfigError, match="one of off, text, json"):
        load_settings(flags("--access-log", "xml"), {})


def test_a_file_is_typed_strictly(tmp_path: Path) -> None:
    text = 'api_keys = ["a"]\ncache = false\ncache_path = "/c"\n[model_aliases]\n"*" = "m"'
    settings = load_settings({"config": toml(tmp_path, text)}, {})
    assert (settings.api_keys, settings.cache, settings.cache_path) == (("a",), False, Path("/c"))
    assert settings.model_aliases == {"*": "m"}
    with pytest.raises(ConfigError, match="port is '1'; it must be a whole number"):
        load_settings({"config": toml(tmp_path, 'port = "1"')}, {})


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"PENSTOCK_PROT": "1"}, "PENSTOCK_PROT: unknown setting 'prot'; did you mean 'port'?"),
        ({"PENSTOCK_PORT": "x"}, "PENSTOCK_PORT: port is 'x'; it must be a whole number."),
        ({"PENSTOCK_PORT": "70000"}, "port is 70000; it must be between 0 and 65535."),
        ({"PENSTOCK_WORKERS": "0"}, "workers is 0; it must be at least 1."),
        ({"PENSTOCK_CACHE": "maybe"}, "cache is 'maybe'; it must be true or false."),
        (
            {"PENSTOCK_QUANTIZE": "int4"},
            "quantize is 'int4'; it must be one of auto, none, w8a8, w8a16, w4a16.",
        ),
        ({"PENSTOCK_WRITE_TIMEOUT": "0"}, "write_timeout is 0.0; it must be a number of seconds above 0."),
        ({"PENSTOCK_DRAIN_TIMEOUT": "nan"}, "drain_timeout is nan; it must be at least 0."),
        ({"PENSTOCK_CACHE_MAX_BYTES": "5"}, "cache_max_bytes is 5; it must be at least 1048576."),
        ({"PENSTOCK_MODEL_ALIASES": "a"}, "model_aliases is 'a'; write it as NAME=MODEL"),
        ({"PENSTOCK_CONFIG": "/no/such.toml"}, "/no/such.toml cannot be read: No such file"),
    ],
)
def test_mistakes_are_named(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings({}, environment)
    assert says in refused.value.message


def test_unknown_keys_of_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"penstock.toml: unknown setting 'wokers'; did you mean 'workers'\?"
    ):
        load_settings({"config": toml(tmp_path, "wokers = 2")}, {})
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings({"config": toml(tmp_path, "= 2")}, {})


def test_the_cache_lies_in_the_users_cache_folder() -> None:
    assert load_settings({}, {"XDG_CACHE_HOME": "/x"}).cache_path == Path("/x/penstock/completions")
    assert load_settings({}, {}).cache_path == Path("~/.cache/penstock/completions").expanduser()


def test_every_setting_has_a_flag_and_a_line_of_help() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, groups=ALL_GROUPS)
    text = parser.format_help()
    for entry in TABLE.values():
        assert (entry.flag in text) is (entry.about.group in ALL_GROUPS), entry.name
        assert entry.about.group in ALL_GROUPS or entry.name in ("tiers", "upstreams", "routes"), (
            "tables have no flags"
        )


def test_the_engine_gets_its_share_under_the_same_names() -> None:
    settings = Settings(max_num_seqs=7, block_size=16, quantize="w8a8", device="cpu")
    config = engine_config(settings)
    assert isinstance(config, EngineConfig)
    assert (config.max_num_seqs, config.block_size, config.quantize, config.device) == (7, 16, "w8a8", "cpu")
    assert engine_config(Settings()) == EngineConfig(), "the defaults are the engine's own"


def test_a_draft_model_is_named_like_the_model(tmp_path: Path) -> None:
    file = toml(tmp_path, 'draft_model = "student"\ndraft_quantize = "w4a16"')
    config = engine_config(load_settings({"config": file}, {}))
    assert (config.draft_model, config.draft_quantize) == ("student", "w4a16")
    assert engine_config(load_settings({"draft_model": "other"}, {})).draft_model == "other"
    with pytest.raises(ConfigError, match="leave one out"):
        engine_config(load_settings({"config": file, "speculation": "off"}, {}))


def test_sparse_attention_is_a_table_or_pairs(tmp_path: Path) -> None:
    assert Settings().sparse_attention is None
    wanted = SparseAttention(mass=0.9, min_context=2048)
    file = toml(tmp_path, "sparse_attention = {mass = 0.9, min_context = 2048}")
    assert load_settings({"config": file}, {}).sparse_attention == wanted
    assert load_settings({"sparse_attention": "prompt_mass=0.9"}, {}).sparse_attention == SparseAttention(
        prompt_mass=0.9
    )
    flag = {"sparse_attention": "mass=0.9, min_context=2048"}
    assert load_settings(flag, {}).sparse_attention == wanted
    assert engine_config(load_settings(flag, {})).sparse_attention == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mass=1.5", "sparse_attention.mass is 1.5; it must be above 0 and at most 1."),
        ("mass=0", "sparse_attention.mass is 0.0"),
        (
            "prompt_mass=2",
            "sparse_attention.prompt_mass is 2.0; it must be above 0 and at most 1, or left out.",
        ),
        ("min_context=0", "sparse_attention.min_context is 0; it must be at least 1."),
        ("mas=0.9", "it must be a table of mass (above 0, at most 1), min_context (tokens), estimate"),
        ("mass=much", "it must be a table of mass"),
        ("0.9", "write it as mass=0.95"),
    ],
)
def test_mistakes_in_sparse_attention_are_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings({"sparse_attention": text}, {})
    assert says in refused.value.message


def test_adapters_are_set_like_everything_else(tmp_path: Path):
    file = tmp_path / "penstock.toml"
    file.write_text('[adapters]\nsql = "/a/sql"\n')
    assert load_settings({"config": str(file)}, {}).adapters == {"sql": "/a/sql"}
    assert load_settings({"adapters": "sql=/a/sql,chat=b"}, {}).adapters == {"sql": "/a/sql", "chat": "b"}
    with pytest.raises(ConfigError, match="adapters is 'sql'; write it as NAME=FOLDER"):
        load_settings({"adapters": "sql"}, {})
    with pytest.raises(ConfigError, match="adapters names one 'a:b'"):
        EngineConfig(adapters={"a:b": "x"})
