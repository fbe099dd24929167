"""What may answer: a model of the local engine, or one of an upstream."""

import msgspec

from ...tables import UpstreamModel
from ..backend import Served


class LocalTarget(msgspec.Struct, frozen=True):
    served: Served

    @property
    def name(self) -> str:
        """As `x-penstock-model` and the metrics tell it."""
        return self.served.name


class RemoteTarget(msgspec.Struct, frozen=True):
    """`model`: what the upstream calls it."""

    upstream: str
    model: str
    prices: UpstreamModel

    @property
    def name(self) -> str:
        return f"{self.upstream}/{self.model}"


Target = LocalTarget | RemoteTarget
