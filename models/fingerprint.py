"""A digest of everything on disk that decides a model's answers."""

from pathlib import Path

import xxhash

CHUNK_BYTES = 8 << 20
DECISIVE = (
    "*.safetensors",
    "*.bin",
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "*.jinja",
    "*.model",
)


def fingerprint(folder: Path, *settings: str) -> str:
    """Hex xxh3-128 over names and contents of weights, config, tokenizer and template, and over `settings`.

    Reads every byte: at memory speed from the page cache that loading fills anyway.
    """
    digest = xxhash.xxh3_128()
    for path in sorted({path for pattern in DECISIVE for path in folder.glob(pattern)}):
        # Lengths keep apart what would read the same joined together.
        digest.update(f"{len(path.name)}:{path.name}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    for setting in settings:
        digest.update(f"{len(setting)}:{setting}".encode())
    return digest.hexdigest()
