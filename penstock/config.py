"""Settings: one table, read once from a TOML file, `PENSTOCK_*` variables and command-line flags.

A flag wins over the environment, that over the file, that over the default. A setting has one name
everywhere: `max_num_seqs` in TOML, `PENSTOCK_MAX_NUM_SEQS`, `--max-num-seqs`. No other module reads the
environment. Tables (tiers, upstreams, routes) are for the file alone.
"""

import argparse
import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from .errors import ConfigError
from .tables import Route, Tier, Upstream, check_tier_names, with_keys

PREFIX = "PENSTOCK_"
FILE_SETTING = "config"
FILE_ONLY = "file"
NO_MODEL = "none"
ENGINE_EMBEDS = "engine"  # embedding_model

Unsupported = Literal["refuse", "drop"]
LogLevel = Literal["debug", "info", "warning", "error"]
AccessLogForm = Literal["off", "text", "json"]


class About(msgspec.Struct, frozen=True):
    """What the help says of one setting, and under which heading."""

    group: str
    help: str


class SparseAttention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decodes attend only to the keys that hold `mass` of their attention, from `min_context` tokens on.

    `prompt_mass`: the same of prompts, in blocks of 64 tokens of which each keeps its share; None (or 1) attends to all.
    `estimate`: what the mass of a decode is estimated from: the keys themselves, or, on a GPU, summaries of 16 of them:
    less to read, but they miss heads that look for single tokens. Prompts always go by the keys.
    """

    mass: float = 0.95
    prompt_mass: float | None = None
    min_context: int = 4096
    estimate: Literal["keys", "min_max", "mean_std"] = "keys"

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise ConfigError(
                f"sparse_attention.mass is {self.mass}; it must be above 0 and at most 1.",
                param="sparse_attention",
            )
        if self.prompt_mass is not None and not 0 < self.prompt_mass <= 1:
            raise ConfigError(
                f"sparse_attention.prompt_mass is {self.prompt_mass}; it must be above 0 and at most 1, or left out.",
                param="sparse_attention",
            )
        if self.min_context < 1:
            raise ConfigError(
                f"sparse_attention.min_context is {self.min_context}; it must be at least 1.",
                param="sparse_attention",
            )


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `penstock serve` can be told.

    The fields are the table that file, environment and flags share.
    """

    model: Annotated[
        str,
        About("model", "'builtin', 'builtin-large', a folder, a hub id, or 'none' to serve upstreams only"),
    ] = "builtin"
    served_model_name: Annotated[str | None, About("model", "name clients use; default: the model's own")] = (
        None
    )
    model_aliases: Annotated[
        dict[str, str], About("model", "other names for it: 'gpt-4o=builtin'; '*=builtin' takes any name")
    ] = {}
    quantize: Annotated[
        Literal["auto", "none", "w8a8", "w8a16", "w4a16"],
        About("model", "bits of weights and activations; auto: as stored, w8a8 for the built-in model"),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], About("model", "computing type; auto: as stored")
    ] = "auto"
    device: Annotated[Literal["auto", "cpu", "cuda"], About("model", "where it runs")] = "auto"
    host: Annotated[str, About("server", "address to listen on")] = "127.0.0.1"
    port: Annotated[int, About("server", "port to listen on; 0 takes a free one")] = 8000
    workers: Annotated[int, About("server", "HTTP processes that share the port and the engine")] = 1
    embedding_model: Annotated[
        str,
        About(
            "server",
            "compares questions and serves /v1/embeddings: 'auto' (penstock[semantic], if installed), 'none', a folder, or "
            "a hub id; 'engine': the served model compares questions itself, and none is loaded",
        ),
    ] = "auto"
    api_keys: Annotated[tuple[str, ...], About("server", "keys clients may use; none: open to all")] = ()
    adapters: Annotated[
        dict[str, str],
        About("server", "LoRA adapters in PEFT's format: 'sql=FOLDER' is served as MODEL:sql"),
    ] = {}
    unsupported: Annotated[
        Unsupported,
        About("server", "parameters not honoured: refuse (400), or drop and name in x-penstock-dropped"),
    ] = "refuse"
    max_body_bytes: Annotated[int, About("server", "largest request body")] = 8 << 20
    write_timeout: Annotated[float, About("server", "seconds a client may stop reading its stream")] = 30.0
    drain_timeout: Annotated[float, About("server", "seconds running requests get to finish at shutdown")] = (
        30.0
    )
    log_level: Annotated[LogLevel, About("server", "least severe level logged")] = "info"
    access_log: Annotated[
        AccessLogForm,
        About("server", "a line on stdout for every request, as text (also: on) or as JSON"),
    ] = "off"
    log_prompts: Annotated[
        bool, About("server", "excerpts of prompts and answers in access log and traces")
    ] = False
    otel_endpoint: Annotated[
        str | None,
        About(
            "server", "OpenTelemetry collector for traces and metrics, as http://host:4318 (penstock[otel])"
        ),
    ] = None
    tenants: Annotated[
        bool,
        About("tenants", "know the API keys of `penstock keys`, keep their limits, and count what is used"),
    ] = True
    tenants_path: Annotated[
        Path | None, About("tenants", "folder of keys and accounts; default: the user's data folder")
    ] = None
    admin_host: Annotated[str, About("tenants", "address on which tenants are managed over HTTP")] = (
        "127.0.0.1"
    )
    admin_port: Annotated[int | None, About("tenants", "port of the same; default: none, it is off")] = None
    admin_key: Annotated[
        str | None,
        About(
            "tenants",
            "what managing takes; better in TOML or the environment, where no list of processes shows it",
        ),
    ] = None
    tiers: Annotated[dict[str, Tier], About(FILE_ONLY, "further models served here (tables.py)")] = {}
    upstreams: Annotated[dict[str, Upstream], About(FILE_ONLY, "services to ask (tables.py)")] = {}
    routes: Annotated[dict[str, Route], About(FILE_ONLY, "model names that stand for several")] = {}
    local_hour_price: Annotated[
        float,
        About("server", "what an hour of the local engine costs, in the currency of the upstreams' prices"),
    ] = 0.0

    cache: Annotated[bool, About("cache", "keep and reuse completions")] = True
    cache_path: Annotated[
        Path | None, About("cache", "folder of the cache; default: the user's cache folder")
    ] = None
    cache_max_bytes: Annotated[int, About("cache", "size beyond which the least used are dropped")] = 1 << 30
    cache_ttl: Annotated[
        float | None, About("cache", "seconds a completion stays valid; default: for ever")
    ] = None

    cache_mode: Annotated[
        Literal["off", "draft", "trusted"],
        About(
            "cache",
            "what is made of questions that mean the same: nothing, drafts that the model verifies, "
            "or trusted answers under a bound of errors",
        ),
    ] = "draft"
    cache_similarity: Annotated[
        float, About("cache", "least cosine of two questions for one's answer to be a draft for the other")
    ] = 0.8

    cache_max_error_rate: Annotated[
        float, About("cache", "share of wrong answers allowed among trusted hits")
    ] = 0.01
    cache_guards: Annotated[
        Literal["none", "bare", "lean", "strict"],
        About(
            "cache",
            "differences that forbid trust, the more the fewer errors and hits: none (the bound alone), bare (numbers, "
            "negation, opposites, order, code), lean (also times, names, degree, modality), or strict (any other word)",
        ),
    ] = "lean"
    cache_same_answer: Annotated[
        Literal["exact", "normalised", "agreement"],
        About(
            "cache",
            "when two answers count as the same: to the letter, but for layout and, in prose, case, or in nearly the same "
            "words with the same numbers and code",
        ),
    ] = "normalised"
    cache_shadow_share: Annotated[
        float,
        About(
            "cache",
            "most background calls of upstreams that check trusted answers, as a share of the trusted answers served",
        ),
    ] = 0.05
    cache_no_store_patterns: Annotated[
        tuple[str, ...],
        About(
            "cache",
            "regular expressions; a question that one of them matches is neither stored nor found "
            "(one that holds a comma: in the TOML file)",
        ),
    ] = ()

    cache_prompts: Annotated[
        bool,
        About(
            "cache", "keep whole prompts beside their answers, as data for `penstock distill` and `quantize`"
        ),
    ] = False

    max_model_len: Annotated[int | None, About("engine", "longest prompt + completion, in tokens")] = None
    max_num_seqs: Annotated[int, About("engine", "most sequences computed in one step")] = 64
    max_num_batched_tokens: Annotated[int, About("engine", "most tokens computed in one step")] = 512
    max_waiting: Annotated[int, About("engine", "most requests that wait; more are refused")] = 1024
    trust_max_tokens: Annotated[
        bool, About("engine", "admit a request only when KV for all its max_tokens is sure to be there")
    ] = False
    kv_cache_tokens: Annotated[int | None, About("engine", "tokens the KV pool holds")] = None
    kv_cache_dtype: Annotated[
        Literal["auto", "none", "int8"],
        About(
            "engine",
            "none: as computed; int8: a scale for each token and head; auto: as the model's folder says, else none",
        ),
    ] = "auto"
    gpu_memory_utilization: Annotated[
        float, About("engine", "share of the GPU memory left by the weights that KV may take")
    ] = 0.9
    block_size: Annotated[int | None, About("engine", "tokens per KV block; default: 32, on a GPU 64")] = None
    sparse_attention: Annotated[
        SparseAttention | None,
        About(
            "engine",
            "compute long contexts on the keys that hold most attention; mass=0.95,prompt_mass=0.95,min_context=4096",
        ),
    ] = None
    speculation: Annotated[
        Literal["auto", "on", "off"],
        About("engine", "guess tokens that repeat and verify many at once; auto: where it is exact (w8a8)"),
    ] = "auto"
    draft_model: Annotated[
        str | None,
        About("engine", "a smaller model of the same vocabulary that guesses tokens too, where that pays"),
    ] = None
    draft_quantize: Annotated[
        Literal["auto", "none", "w8a8", "w8a16", "w4a16"],
        About("engine", "precision of the draft model; auto: that of the model it guesses for"),
    ] = "auto"
    prefix_caching: Annotated[bool, About("engine", "reuse the KV of equal prompt beginnings")] = True
    threads: Annotated[int | None, About("engine", "CPU threads; default: every core")] = None

    def __repr__(self) -> str:
        """Without the keys: it may end up in a log."""
        shown = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return f"Settings({', '.join(f'{name}={_shown(name, value)}' for name, value in shown)})"

    def __post_init__(self) -> None:
        _at_least(self, 1, "workers", "max_body_bytes", "max_num_seqs", "max_num_batched_tokens")
        _at_least(self, 1, "max_waiting", "block_size", "max_model_len", "kv_cache_tokens", "threads")
        _at_least(self, 0, "port", "admin_port", "drain_timeout", "local_hour_price")
        _at_least(self, 1 << 20, "cache_max_bytes")
        for name in ("port", "admin_port"):
            if (getattr(self, name) or 0) > 65535:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be between 0 and 65535.", param=name
                )
        self._check_admin()
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0 and at most 1.",
                param="gpu_memory_utilization",
            )
        if not 0 < self.cache_similarity <= 1:
            raise ConfigError(
                f"cache_similarity is {self.cache_similarity}; it must be above 0 and at most 1.",
                param="cache_similarity",
            )
        if not 0 < self.cache_max_error_rate <= 0.2:
            raise ConfigError(
                f"cache_max_error_rate is {self.cache_max_error_rate}; it must be above 0 and at most 0.2.",
                param="cache_max_error_rate",
            )
        if not 0 <= self.cache_shadow_share <= 1:
            raise ConfigError(
                f"cache_shadow_share is {self.cache_shadow_share}; it must be 0 (no background calls) to 1.",
                param="cache_shadow_share",
            )
        for name in ("write_timeout", "cache_ttl"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; it must be a number of seconds above 0.", param=name)
        for pattern in self.cache_no_store_patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"cache_no_store_patterns holds {pattern!r}, which is no regular expression: {error}.",
                    param="cache_no_store_patterns",
                ) from error
        if self.model == NO_MODEL and not self.upstreams:
            raise ConfigError(
                "model is 'none', and there are no upstreams: nothing would answer. Add an [upstreams.NAME] table to the "
                "settings file, or serve a model.",
                param="model",
            )
        if self.model == NO_MODEL and self.embedding_model == ENGINE_EMBEDS:
            raise ConfigError(
                "embedding_model is 'engine', but model is 'none': no model runs here whose states could be vectors. Set "
                "embedding_model to 'auto', 'none', or the folder or hub id of an embedding model, or serve a model.",
                param="embedding_model",
            )
        check_tier_names(self.tiers)
        if self.model == NO_MODEL and self.tiers:
            raise ConfigError(
                f"model is 'none', but there are tiers ({', '.join(self.tiers)}), which are served beside it; make one "
                "the model.",
                param="tiers",
            )
        if self.otel_endpoint is not None and not self.otel_endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"otel_endpoint is {self.otel_endpoint!r}; it must be a URL, as http://127.0.0.1:4318.",
                param="otel_endpoint",
            )
        if any(not key for key in self.api_keys):
            raise ConfigError("api_keys holds an empty key; remove it.", param="api_keys")

    def _check_admin(self) -> None:
        if self.admin_key == "":
            raise ConfigError("admin_key is empty; name a key, or leave it out.", param="admin_key")
        if self.admin_port is None:
            return
        if not self.tenants:
            raise ConfigError(
                f"admin_port is {self.admin_port}, but tenants is off: there is nothing to manage. Leave one out.",
                param="admin_port",
            )
        if self.admin_key is None and not _is_loopback(self.admin_host):
            raise ConfigError(
                f"admin_host is {self.admin_host!r}, which others can reach; set admin_key, or listen on 127.0.0.1.",
                param="admin_host",
            )


class _Entry(msgspec.Struct, frozen=True):
    """One row of the table."""

    name: str
    type: Any
    about: About

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def _table() -> dict[str, _Entry]:
    entries = {}
    for name, annotation in Settings.__annotations__.items():
        type_, about = get_args(annotation)
        entries[name] = _Entry(name, type_, about)
    return entries


TABLE = _table()
_TARGETS = {"adapters": "FOLDER", "model_aliases": "MODEL"}
_LONGEST_NAME = 100
# Once a switch, and still one.
_ACCESS_LOG = {
    True: "text",
    False: "off",
    "on": "text",
    "yes": "text",
    "true": "text",
    "no": "off",
    "false": "off",
}
_SWITCH = {"on": True, "yes": True, "off": False, "no": False}


def add_arguments(
    parser: argparse.ArgumentParser, *, groups: tuple[str, ...] = (), names: tuple[str, ...] = ()
) -> None:
    """Adds a flag for every setting of `groups` and for those of `names`, and --config.

    Absent flags leave no trace in the namespace.
    """
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help=f"TOML file of settings ({PREFIX}CONFIG)"
    )
    sections = {group: parser.add_argument_group(group) for group in groups}
    for entry in TABLE.values():
        if entry.about.group in groups:
            _add_argument(sections[entry.about.group], entry)
        elif entry.name in names:
            _add_argument(parser, entry)


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Resolves flags (already absent when not given) > environment > file > defaults.

    Raises ConfigError naming the setting, where it was set, its value and what it must be.
    """
    variables = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    file = flags.get(FILE_SETTING, variables.pop(PREFIX + FILE_SETTING.upper(), None))
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_from_file(Path(file)))
    for variable, text in variables.items():
        name = _known(variable.removeprefix(PREFIX).lower(), where=variable)
        if TABLE[name].about.group == FILE_ONLY:
            raise ConfigError(f"{variable}: {name} can only be written in the settings file.", param=name)
        values[name] = _parse(TABLE[name], text, where=variable)
    for name, value in flags.items():
        if name in TABLE:
            values[name] = _parse(TABLE[name], value, where=TABLE[name].flag)
    values.setdefault("cache_path", _user_cache(environment) / "penstock" / "completions")
    # Not beside the cache, which anybody may empty.
    values.setdefault("tenants_path", _user_data(environment) / "penstock" / "tenants")
    values["upstreams"] = with_keys(values.get("upstreams", {}), environment)
    return Settings(**values)


class SettingsSource:
    """Where settings came from, so that they can be read anew.

    Args:
        flags, environment: as `load_settings` takes them.
    """

    def __init__(self, flags: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._flags = dict(flags)
        self._environment = dict(environment)
        file = flags.get(FILE_SETTING, environment.get(PREFIX + FILE_SETTING.upper()))
        self.file = None if file is None else Path(file)

    def load(self) -> Settings:
        """Raises ConfigError."""
        return load_settings(self._flags, self._environment)

    def stamp(self) -> tuple[int, int, int] | None:
        """Differs once the file has been written or replaced; None without one, or while it is away."""
        try:
            found = None if self.file is None else self.file.stat()
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _user_cache(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _user_data(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_DATA_HOME") or "~/.local/share").expanduser()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def did_you_mean(word: str, known: list[str]) -> str:
    # A word of megabytes, as somebody may send one, is like nothing here, which takes half a second to find out.
    close = difflib.get_close_matches(word, known, n=1) if len(word) <= _LONGEST_NAME else []
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are: {', '.join(sorted(known))}." if len(known) <= 8 else "nothing here is called so."


def _add_argument(section: argparse._ActionsContainer, entry: _Entry) -> None:
    default = Settings.__struct_defaults__[list(TABLE).index(entry.name)]
    shown = f" (default: {default})" if isinstance(default, str | int | float) and default != "" else ""
    if entry.type is bool:
        section.add_argument(
            entry.flag,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=f"{entry.about.help} (default: {'on' if default else 'off'})",
        )
        return
    choices = get_args(entry.type) if get_origin(entry.type) is Literal else None
    section.add_argument(
        entry.flag,
        nargs="?" if entry.type is AccessLogForm else None,
        const="on" if entry.type is AccessLogForm else None,
        metavar="{" + ",".join(choices) + "}" if choices else _placeholder(entry),
        default=argparse.SUPPRESS,
        help=entry.about.help.replace("%", "%%") + shown,
    )


def _placeholder(entry: _Entry) -> str:
    if entry.name in _TARGETS:
        return f"NAME={_TARGETS[entry.name]},..."
    if entry.name.endswith("_patterns"):
        return "REGEX,..."
    type_ = entry.type
    text = str(type_)
    placeholders = (
        ("SparseAttention", "mass=P,..."),
        ("tuple", "KEY,..."),
        ("Path", "PATH"),
        ("int", "N"),
    )
    for word, shown in placeholders:
        if word in text or type_ is {"int": int}.get(word):
            return shown
    if "float" in text:
        return "SECONDS" if entry.name.endswith(("_timeout", "_ttl")) else "NUMBER"
    return "TEXT"


def _from_file(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"The settings file {file} cannot be read: {error.strerror}.", param="config"
        ) from error
    except ValueError as error:
        raise ConfigError(f"The settings file {file} is not valid TOML: {error}.", param="config") from error
    return {
        name: _of_file(_known(name, where=str(file)), value, where=str(file))
        for name, value in content.items()
    }


def _of_file(name: str, value: Any, *, where: str) -> Any:
    entry = TABLE[name]
    if entry.about.group != FILE_ONLY or not isinstance(value, dict):
        return _convert(entry, value, where=where, strict=True)
    type_ = get_args(entry.type)[1]
    return {key: _row(table, type_, where=f"{where}: {name}.{key}") for key, table in value.items()}


def _row(table: Any, type_: Any, *, where: str) -> Any:
    """One of the tables in a table."""
    try:
        return msgspec.convert(table, type_, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        raise ConfigError(f"{where}{'.' if path else ''}{path.rstrip('`')}: {what}.") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", param=error.param) from error


def _known(name: str, *, where: str) -> str:
    if name not in TABLE:
        raise ConfigError(f"{where}: unknown setting {name!r}; {did_you_mean(name, list(TABLE))}", param=name)
    return name


def _parse(entry: _Entry, value: Any, *, where: str) -> Any:
    """A value written as text: lists are comma-separated, mappings 'name=value' pairs."""
    if isinstance(value, str):
        if get_origin(entry.type) is tuple:
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif get_origin(entry.type) is dict:
            value = _pairs(entry, value, where=where, form="NAME=" + _TARGETS[entry.name])
        elif entry.type == SparseAttention | None:
            value = _pairs(entry, value, where=where, form="mass=0.95")
        elif entry.type is bool:
            value = _SWITCH.get(value.lower(), value)
    return _convert(entry, value, where=where, strict=False)


def _pairs(entry: _Entry, text: str, *, where: str, form: str) -> dict[str, str]:
    pairs = {}
    for part in text.split(","):
        name, equals, target = part.partition("=")
        if not (name.strip() and equals and target.strip()):
            raise ConfigError(
                f"{where}: {entry.name} is {text!r}; write it as {form}, several separated by commas.",
                param=entry.name,
            )
        pairs[name.strip()] = target.strip()
    return pairs


def _convert(entry: _Entry, value: Any, *, where: str, strict: bool) -> Any:
    if entry.type is AccessLogForm and isinstance(value, str | bool):
        value = _ACCESS_LOG.get(value, value)
    try:
        return msgspec.convert(value, entry.type, strict=strict, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        if entry.about.group == FILE_ONLY:
            what, _, path = str(error).partition(" - at `$")
            raise ConfigError(
                f"{where}: {entry.name}{path.rstrip('`')}: {what}.", param=entry.name
            ) from error
        raise ConfigError(
            f"{where}: {entry.name} is {_shown(entry.name, value)}; it must be {_described(entry.type)}.",
            param=entry.name,
        ) from error


def is_secret(name: str) -> bool:
    """Whether a setting holds keys."""
    return name.endswith(("key", "keys"))


def _shown(name: str, value: object) -> str:
    return "(not shown)" if value and is_secret(name) else repr(value)


def _decode_path(type_: type, value: Any) -> Any:
    if type_ is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    raise ValueError(value)


def _described(type_: Any) -> str:
    if get_origin(type_) is Literal:
        return "one of " + ", ".join(get_args(type_))
    plain = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        tuple[str, ...]: "a list of texts",
        dict[str, str]: "a table of names",
        Path: "a path",
        SparseAttention: "a table of mass (above 0, at most 1), min_context (tokens), estimate (keys, min_max, mean_std), "
        "prompt_mass (above 0, at most 1)",
    }
    return plain.get(type_) or " or nothing".join(plain[part] for part in get_args(type_) if part in plain)


def _at_least(settings: Settings, low: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not low <= value < float("inf"):
            raise ConfigError(f"{name} is {value}; it must be at least {low}.", param=name)
