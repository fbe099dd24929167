"""What may answer: a model of the local engine, or one of an upstream."""

import msgspec

from ...tables import ANY_MODEL, UpstreamModel
from ..backend import Served


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


class RemoteTarget(msgspec.Struct, frozen=True):
    """`model`: what the upstream calls it; `any_name`: it came from the client, and the settings do not know it."""

    upstream: str
    model: str
    prices: UpstreamModel
    any_name: bool = False

    @property
    def name(self) -> str:
        return f"{self.upstream}/{self.model}"

    @property
    def series(self) -> str:
        """Clients' inventions must not become a thousand series."""
        return f"{self.upstream}/{ANY_MODEL}" if self.any_name else self.name


Target = LocalTarget | RemoteTarget
