"""The embedding model behind the server: its name, and the embedder that computes."""

from ..config import Settings
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

    def takes(self, name: str) -> bool:
        return name == self.name or self._takes_any
