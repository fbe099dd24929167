"""What the semantic cache asks of whatever turns texts into vectors. Knows no model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Embedder(Protocol):
    """Of one event loop. `dims` and `fingerprint` are known once a first `embed` has returned: it may load a model."""

    @property
    def dims(self) -> int:
        """Length of a vector."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same text could get another vector: vectors of two fingerprints are never compared."""

    async def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """[n, dims], each of length 1, in the order of the texts; a text's vector does not depend on the others.

        A text longer than the model reads is cut at its end. Raises PenstockError when it cannot be computed now.
        """
