"""The embedding model behind the server: its name, and the embedder that computes."""

from ..config import Settings
from ..errors import ModelNotFoundError
from ..models.embedding_location import choose_embedding_model, embedding_model_name
from ..scheduler import AsyncEmbedder
from .backend import ANY_NAME


class EmbeddingBackend:
    """`name`: what clients call the model; with the alias "*" they may call it as they like."""

    def __init__(self, settings: Settings, embedder: AsyncEmbedder) -> None:
        chosen = choose_embedding_model(settings.embedding_model)
        self.name = embedding_model_name(chosen or settings.embedding_model)
        self.embedder = embedder
        self._takes_any = ANY_NAME in settings.model_aliases

    def check_model(self, name: str) -> None:
        """Raises ModelNotFoundError unless this model answers to `name`."""
        if name != self.name and not self._takes_any:
            raise ModelNotFoundError(
                f"The embedding model {name!r} does not exist here; served is: {self.name}.", param="model"
            )
