"""What may answer: a model of the local engine, or one of an upstream."""

from functools import cached_property

import msgspec

from ...tables import ANY_MODEL, UpstreamModel
from ..backend import Served
from ..tenants.spend import Prices


class LocalTarget(msgspec.Struct, frozen=True):
    served: Served

    @property
    def name(self) -> str:
        """As `x-penstock-model` tells it."""
        return self.served.name

    @property
    def series(self) -> str:
        """As the metrics tell it."""
        return self.served.name


class RemoteTarget(msgspec.Struct, frozen=True, dict=True):
    """`model`: what the upstream calls it; `listed`: as the settings have it; `any_name`: it came from the client, and the
    settings do not know it."""

    upstream: str
    model: str
    listed: UpstreamModel
    any_name: bool = False

    @cached_property
    def name(self) -> str:
        return f"{self.upstream}/{self.model}"

    @cached_property
    def prices(self) -> Prices:
        listed = self.listed
        return Prices(input=listed.input, cached_input=listed.cached_input, output=listed.output)

    @cached_property
    def series(self) -> str:
        """Clients' inventions must not become a thousand series."""
        return f"{self.upstream}/{ANY_MODEL}" if self.any_name else self.name


Target = LocalTarget | RemoteTarget
