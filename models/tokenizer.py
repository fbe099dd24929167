"""Text to token ids and back, and chat messages to the prompt a model was trained on.

Uses the `tokenizers` library on a folder's tokenizer.json, so that processes without a model (the proxy)
import neither torch nor transformers. Only folders without one go through transformers, which then builds it.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import InvalidRequestError, ModelLoadError
from .chat_template import ChatTemplate
from .json_file import read_json_object
from .location import TOKENIZER_FILES, resolve_model
from .thinking import Thinking
from .tool_format import ToolFormat, mentions_tools, probed_format

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """One model's tokenizer and chat template.

    Attributes:
        vocab_size: number of ids, added tokens included.
        eos_token_id: the id that ends a text, None when the folder names none.
        chat_template: its Jinja source, None when the model has none.
        thinking: how the template marks thoughts, None where it does not.
        markers: added tokens, by their text, that grammars know as tokens only.
        fingerprint: hex digest of all that turns text into ids: changes whenever a prompt's ids could.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: dict[str, Any],
        template: str | None,
        tool_template: str | None = None,
    ) -> None:
        # Files often carry the training run's own truncation or padding; neither has a place when serving.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_tokens = _special_tokens(config)
        self._template = None if template is None else ChatTemplate(template, self._special_tokens)
        self._tool_template = (
            self._template if tool_template is None else ChatTemplate(tool_template, self._special_tokens)
        )
        description = backend.to_str()
        self._bytes_of = _bytes_of(json.loads(description).get("decoder"))
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        # llguidance's rule; the others are text like any to it.
        self.markers = {
            text: token_id
            for token_id, text in self._added.items()
            if token_id in self._special_ids or (text.startswith("<") and text.endswith(">"))
        }
        self.chat_template = template
        self.thinking = None if template is None else Thinking.of(template)
        self.fingerprint = blake2b(description.encode(), digest_size=16).hexdigest()
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = self._id_of("bos_token")
        self.eos_token_id = self._id_of("eos_token")

    @classmethod
    def load(cls, model: str) -> "Tokenizer":
        """`model` is "builtin", a folder, or a hub id. Raises ModelLoadError."""
        folder = resolve_model(model, files=TOKENIZER_FILES)
        config = read_json_object(folder / "special_tokens_map.json") | read_json_object(
            folder / "tokenizer_config.json"
        )
        file = folder / "tokenizer.json"
        try:
            backend = (
                tokenizers.Tokenizer.from_file(str(file)) if file.is_file() else _from_transformers(folder)
            )
        except ModelLoadError:
            raise
        except Exception as error:  # `tokenizers` raises plain Exception for every fault of the file
            raise ModelLoadError(f"{file} is not a tokenizer this version can read: {error}.") from error
        template, tool_template = _chat_templates(folder, config)
        return cls(backend, config, template, tool_template)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        # As a batch of one: it lets go of the GIL (a text of 2 MB held it for 1.5 s, now for 30 ms), and is faster.
        encoding = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        ids: list[int] = encoding.ids
        return ids

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> str:
        """`shown`: special tokens that are written although the others are skipped."""
        if shown and skip_special_tokens:
            hidden = self._special_ids - shown
            token_ids = [token_id for token_id in token_ids if token_id not in hidden]
            skip_special_tokens = False
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for, which need not be whole characters. Empty for an unknown id."""
        added = self._added.get(token_id)
        if added is not None:
            return added.encode()
        token: str | None = self._backend.id_to_token(token_id)
        return b"" if token is None else self._bytes_of(token)

    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added and special ones included."""
        ids: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return ids

    def render_chat(
        self, messages: list[dict[str, object]], *, add_generation_prompt: bool = True, **template_kwargs: Any
    ) -> str:
        """Raises InvalidRequestError when the model has no chat template or its template refuses the
        messages.
        """
        template = self._tool_template if template_kwargs.get("tools") else self._template
        if template is None:
            raise InvalidRequestError(
                "This model has no chat template; send a plain prompt to /v1/completions.", param="messages"
            )
        return template.render(messages, add_generation_prompt=add_generation_prompt, **template_kwargs)

    @cached_property
    def tool_format(self) -> ToolFormat | str | None:
        """How the model writes tool calls; why that cannot be read; None where its template knows of no tools."""
        template = self._tool_template
        if template is None or not mentions_tools(template.source):
            return None
        found = probed_format(
            lambda messages, tools: template.render(messages, add_generation_prompt=False, tools=tools),
            self.markers,
            self._special_tokens.get("eos_token"),
        )
        if isinstance(found, ToolFormat) and self.thinking and self.thinking.open in found.trigger:
            return "it puts thoughts before every call"
        return found

    def special_ids_in(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The special tokens that occur in the texts."""
        special = ((token_id, self._added[token_id]) for token_id in sorted(self._special_ids))
        return tuple(token_id for token_id, content in special if any(content in text for text in texts))

    def encode_chat(
        self, messages: list[dict[str, object]], *, add_generation_prompt: bool = True, **template_kwargs: Any
    ) -> list[int]:
        """Token ids of the rendered chat.

        The template writes the special tokens itself, so none are added.
        """
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, **template_kwargs)
        return self.encode(text, add_special_tokens=False)

    def _id_of(self, name: str) -> int | None:
        token = self._special_tokens.get(name)
        token_id: int | None = None if token is None else self._backend.token_to_id(token)
        return token_id


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and its like, whether written as text or as an added-token object."""
    tokens = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _chat_templates(folder: Path, config: dict[str, Any]) -> tuple[str | None, str | None]:
    """The template, and the one for requests with tools where that is another."""
    own = folder / "additional_chat_templates" / "tool_use.jinja"
    for_tools = own.read_text(encoding="utf-8") if own.is_file() else None
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), for_tools
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones: [{"name": "default", "template": "..."}]
        named = {entry["name"]: entry["template"] for entry in template}
        template, for_tools = named.get("default"), for_tools or named.get("tool_use")
    return template if isinstance(template, str) else None, for_tools


def _from_transformers(folder: Path) -> tokenizers.Tokenizer:
    try:
        from transformers import AutoTokenizer

        slow_or_fast = AutoTokenizer.from_pretrained(folder)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelLoadError(
            f"{folder} has no tokenizer.json, and no other tokenizer that can be loaded: {reason} Add the tokenizer.json "
            "that belongs to the model."
        ) from error
    backend = getattr(slow_or_fast, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelLoadError(
            f"{folder} has no tokenizer.json and its {type(slow_or_fast).__name__} cannot be turned into "
            "one; add a tokenizer.json to the folder."
        )
    return backend


def _bytes_of(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """How this vocabulary writes bytes as text, undone."""
    parts = _parts(decoder)
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _from_byte_level
    if "WordPiece" in kinds:
        return lambda token: token[2:].encode() if token.startswith("##") else b" " + token.encode()
    space = next((part["replacement"] for part in parts if part["type"] == "Metaspace"), None)
    if space is None and any(part["type"] == "Replace" for part in parts):
        space = "\u2581"
    fallback = "ByteFallback" in kinds

    def from_pieces(token: str) -> bytes:
        if fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return (token if space is None else token.replace(space, " ")).encode()

    return from_pieces


def _parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _byte_level_alphabet() -> dict[str, int]:
    """The GPT-2 alphabet: printable Latin-1 bytes stand for themselves, the rest for characters from U+0100
    on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()


def _from_byte_level(token: str) -> bytes:
    return bytes(_BYTE_LEVEL[char] for char in token)
