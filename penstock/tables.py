"""The tables of the settings file: further local models, upstreams, the models they have, and routes. A leaf beside config.

[tiers.small]
model = "/models/small-w8a8"

[upstreams.openai]
base_url = "https://api.openai.com/v1"
api_key_env = "OPENAI_API_KEY"

[upstreams.openai.models."gpt-4o-mini"]
input = 0.15
cached_input = 0.075
output = 0.60

[routes.quick]
targets = ["builtin", "openai/gpt-4o-mini"]
"""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from .errors import ConfigError

ANY_MODEL = "*"
# Settings of a route with a judge, and of no other.
_LEARNED = ("router", "quality", "buffer_tokens", "shadow_share", "shadow_budget")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Secret(msgspec.Struct, frozen=True):
    """A text that no representation shows."""

    value: str

    def __repr__(self) -> str:
        return "Secret(...)"


class UpstreamModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of an upstream, and its prices per million tokens, in any one currency.

    Attributes:
        name: what the upstream calls it; None: the same.
        input, output: None: unknown, so that costs are, too.
        cached_input: of prompt tokens that the upstream had cached; None: as `input`.
    """

    name: str | None = None
    input: float | None = None
    cached_input: float | None = None
    output: float | None = None

    def __post_init__(self) -> None:
        for field in ("input", "cached_input", "output"):
            price = getattr(self, field)
            if price is not None and not 0 <= price < float("inf"):
                raise ConfigError(f"The price {field} is {price}; it must be 0 or more.", param="upstreams")


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service that speaks OpenAI's or Anthropic's API.

    Attributes:
        base_url: up to and without the endpoint's own path, with `/v1` where the service has it.
        format: whose API it speaks.
        responses: it also has OpenAI's /responses.
        api_key_env, api_key_file: where its key is found; neither: it takes none.
        api_key: that key, once found.
        models: names, or a table of models; "*" takes any name.
        connect_timeout, first_token_timeout, idle_timeout, total_timeout: seconds for a connection, for a stream's first
            token, between two pieces of it, and for all of a reply, streamed or not, with its retries.
        retries: further attempts after one that failed, before the next target is asked.
        max_connections: most requests at once; more wait.
        hedge_percentile: ask a second time when a first token takes longer than this share of the last ones, and take
            what comes first; None: never.
        stream_usage: ask for the token counts of every stream, and keep that event from clients that have not.
        breaker_failures, breaker_seconds: so many failures in a row, and nothing is asked of it for so long.
    """

    base_url: str
    format: Literal["openai", "anthropic"] = "openai"
    responses: bool = False
    api_key_env: str | None = None
    api_key_file: Path | None = None
    api_key: Secret | None = None
    models: list[str] | dict[str, UpstreamModel] = {}
    connect_timeout: float = 5.0
    first_token_timeout: float = 60.0
    idle_timeout: float = 60.0
    total_timeout: float = 600.0
    retries: int = 2
    max_connections: int = 512
    hedge_percentile: float | None = None
    stream_usage: bool = True
    breaker_failures: int = 5
    breaker_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]+", self.base_url):
            raise ConfigError(
                f"base_url is {self.base_url!r}; it must begin with http:// or https:// and a host.",
                param="upstreams",
            )
        if self.api_key_env and self.api_key_file:
            raise ConfigError("api_key_env and api_key_file are given; leave one out.", param="upstreams")
        for field in (
            "connect_timeout",
            "first_token_timeout",
            "idle_timeout",
            "total_timeout",
            "breaker_seconds",
        ):
            if not 0 < getattr(self, field) < float("inf"):
                raise ConfigError(
                    f"{field} is {getattr(self, field)}; it must be a number of seconds above 0.",
                    param="upstreams",
                )
        for field, low in (("retries", 0), ("max_connections", 1), ("breaker_failures", 1)):
            if getattr(self, field) < low:
                raise ConfigError(
                    f"{field} is {getattr(self, field)}; it must be at least {low}.", param="upstreams"
                )
        if self.hedge_percentile is not None and not 0 < self.hedge_percentile < 1:
            raise ConfigError(
                f"hedge_percentile is {self.hedge_percentile}; it must be between 0 and 1, as 0.95.",
                param="upstreams",
            )

    @property
    def known_models(self) -> dict[str, UpstreamModel]:
        """By the names that clients use."""
        return (
            self.models if isinstance(self.models, dict) else {name: UpstreamModel() for name in self.models}
        )

    @property
    def sends_key_in_clear(self) -> bool:
        """The key crosses a network that is not the host's own, unencrypted."""
        has_key = self.api_key is not None
        return has_key and self.base_url.startswith("http://") and not _is_near(self.base_url)


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further model served here, by an engine of its own, under the name of its table.

    What it says means what the setting of the same name means, and has the same default: of the main model's settings it
    takes none. Engines share the machine: where two of them compute at once, each has that much less of it.

    Attributes:
        hour_price: what an hour of this engine costs; None: as much as `local_hour_price` says. An answer of a smaller model
            is cheaper in any case, by the seconds that it takes.
    """

    model: str
    quantize: Literal["auto", "none", "w8a8", "w8a16", "w4a16"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_waiting: int = 1024
    trust_max_tokens: bool = False
    kv_cache_tokens: int | None = None
    kv_cache_dtype: Literal["auto", "none", "int8"] = "auto"
    gpu_memory_utilization: float = 0.9
    block_size: int | None = None
    speculation: Literal["auto", "on", "off"] = "auto"
    draft_model: str | None = None
    draft_quantize: Literal["auto", "none", "w8a8", "w8a16", "w4a16"] = "auto"
    prefix_caching: bool = True
    threads: int | None = None
    hour_price: float | None = None

    def __post_init__(self) -> None:
        if self.hour_price is not None and not 0 <= self.hour_price < float("inf"):
            raise ConfigError(f"hour_price is {self.hour_price}; it must be 0 or more.", param="tiers")


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model name that stands for several.

    Attributes:
        targets: names of local models, or UPSTREAM/MODEL.
        policy: which is asked first: the first named, one drawn by `weights`, or the cheapest that is healthy. The others
            follow, in the same order, should it fail. Or what a judge decides of two targets, the small one named first:
            "cascade" keeps the small one's answer where it is good enough, "predictive" picks by the question alone.
        weights: shares, one per target; only with "weighted".

    Only where a judge decides:
        router: the file that `penstock tune router` made for these targets.
        quality: which of its promises counts; None: the strictest that can be kept.
        buffer_tokens: so many tokens of the small one's answer are judged, and the rest is streamed; 0: all of it is judged.
        shadow_share: of what is judged, so much is looked at in the background: would the large one have said the same?
        shadow_budget: most tokens that this may take of the large one in an hour.
    """

    targets: tuple[str, ...]
    policy: Literal["fixed", "weighted", "cheapest", "cascade", "predictive"] = "fixed"
    weights: tuple[float, ...] = ()
    router: Path | None = None
    quality: float | None = None
    buffer_tokens: int = 0
    shadow_share: float = 0.0
    shadow_budget: int = 0

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("targets is empty; name a model, or UPSTREAM/MODEL.", param="routes")
        if (self.policy == "weighted") != bool(self.weights):
            raise ConfigError(
                'weights and policy = "weighted" go together; give both or neither.', param="routes"
            )
        if self.weights and len(self.weights) != len(self.targets):
            raise ConfigError(
                f"There are {len(self.weights)} weights for {len(self.targets)} targets; give one for each.",
                param="routes",
            )
        if self.weights and (min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf")):
            raise ConfigError("weights must be 0 or more, and one of them above 0.", param="routes")
        if self.is_learned:
            self._check_learned()
        elif given := [name for name in _LEARNED if getattr(self, name) not in (None, 0)]:
            raise ConfigError(
                f'{given[0]} is for policy = "cascade" or "predictive", not "{self.policy}"; remove it.',
                param="routes",
            )

    @property
    def is_learned(self) -> bool:
        """A judge decides."""
        return self.policy in ("cascade", "predictive")

    def _check_learned(self) -> None:
        if len(self.targets) != 2:
            raise ConfigError(
                f'policy = "{self.policy}" has two targets, the small one and the large one, not {len(self.targets)}.',
                param="routes",
            )
        if self.router is None:
            raise ConfigError(
                f'policy = "{self.policy}" needs router = "FILE", which `penstock tune router` makes.',
                param="routes",
            )
        if self.quality is not None and not 0 < self.quality <= 1:
            raise ConfigError(f"quality is {self.quality}; it must be above 0 and at most 1.", param="routes")
        if self.buffer_tokens < 0 or (self.buffer_tokens and self.policy == "predictive"):
            raise ConfigError(
                f'buffer_tokens is {self.buffer_tokens}; it must be at least 0, and is for policy = "cascade".',
                param="routes",
            )
        if not 0 <= self.shadow_share <= 1:
            raise ConfigError(f"shadow_share is {self.shadow_share}; it must be 0..1.", param="routes")
        if (self.shadow_share > 0) != (self.shadow_budget > 0):
            raise ConfigError(
                f"shadow_share is {self.shadow_share} and shadow_budget {self.shadow_budget}; give both, or neither.",
                param="routes",
            )


def check_tier_names(tiers: Mapping[str, Tier]) -> None:
    """Raises ConfigError for what is no name: in "a/b" a is an upstream, and in "a:b" b is an adapter."""
    for name in tiers:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"A tier is called {name!r}; use up to 64 letters, digits, '_', '.' and '-'.", param="tiers"
            )


def _is_near(url: str) -> bool:
    """Its host is this one, or on a private network: an address of one, or a name without dots."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


def with_keys(upstreams: Mapping[str, Upstream], environment: Mapping[str, str]) -> dict[str, Upstream]:
    """Raises ConfigError where a name is none, or a key is not where it should be."""
    return {name: _with_key(name, upstream, environment) for name, upstream in upstreams.items()}


def _with_key(name: str, upstream: Upstream, environment: Mapping[str, str]) -> Upstream:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"An upstream is called {name!r}; use up to 64 letters, digits, '_', '.' and '-'.",
            param="upstreams",
        )
    if upstream.api_key is not None:
        raise ConfigError(
            f"upstreams.{name}.api_key: a key does not belong into the settings file; name the variable that holds it in "
            "api_key_env, or a file in api_key_file.",
            param="upstreams",
        )
    if upstream.api_key_env is not None:
        key = environment.get(upstream.api_key_env, "").strip()
        place = f"The variable {upstream.api_key_env}"
    elif upstream.api_key_file is not None:
        place = f"The file {upstream.api_key_file}"
        try:
            key = upstream.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"upstreams.{name}.api_key_file: {upstream.api_key_file} cannot be read: {error}.",
                param="upstreams",
            ) from error
    else:
        return upstream
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"upstreams.{name}: {place} holds no key; put one there, or leave the setting out.",
            param="upstreams",
        )
    return msgspec.structs.replace(upstream, api_key=Secret(key))
