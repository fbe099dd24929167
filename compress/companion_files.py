"""What belongs to a model and is neither its config nor its weights: whatever is made of it keeps these."""

import shutil
from pathlib import Path

from .folder import TEMPLATES

COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)


def copy_companions(source: Path, target: Path) -> None:
    """From one model's folder to another's, but for what is there already. Raises OSError."""
    for file in sorted({file for pattern in COMPANIONS for file in source.glob(pattern) if file.is_file()}):
        if not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, target / TEMPLATES)
