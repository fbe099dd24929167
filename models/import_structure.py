"""What transformers' files define, kept on disk: transformers reads all 3,000 of them, in every process that imports it.

Measured: imports of 2.9 s instead of 4.2. Kept for the files as they are, by their names, sizes and times of change:
where any differs they are read anew. Without a folder to keep it in, they are always read.

Only for a process of our own, never for one that embeds us.
"""

import contextlib
import functools
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

READER = "transformers.utils.import_utils"
# Environments whose files are remembered.
MOST_KEPT = 8
# By the packages that names need: in which module each lies.
Structure = dict[frozenset[str], dict[str, set[str]]]


@contextlib.contextmanager
def kept_import_structure() -> Iterator[None]:
    """While it lasts, transformers can be imported without reading what it was read for before."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != READER:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        read = module.__dict__.get("define_import_structure")
        if read is not None:  # another transformers may do without
            module.__dict__["define_import_structure"] = _kept(read)


def _kept(read: Callable[..., Structure]) -> Callable[..., Structure]:
    """`read`, but for the folder of all models, which is nearly all there is to read."""

    @functools.wraps(read)
    def find(module_path: Any, prefix: str | None = None) -> Structure:
        folder = Path(module_path)
        folder = folder.parent if folder.suffix == ".py" else folder
        if folder.name != "models":
            return read(module_path, prefix)
        kept = _place_for(folder)
        structure = kept and _load(kept)
        if not structure:
            structure = read(module_path)
            if kept:
                _store(kept, structure)
        lead = f"{prefix}." if prefix else ""
        # New for each caller: transformers adds to it.
        return {
            needs: {lead + module: set(names) for module, names in modules.items()}
            for needs, modules in structure.items()
        }

    return find


@functools.cache
def _place_for(folder: Path) -> Path | None:
    """Where the names of these files are kept, as long as they are as they are now."""
    digest = blake2b(digest_size=16)
    try:
        for part, folders, names in os.walk(folder):
            folders[:] = sorted(set(folders) - {"__pycache__"})
            for path in (f"{part}/{name}" for name in sorted(names) if name.endswith(".py")):
                state = os.stat(path)
                digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
        kept = Path.home() / ".cache" / "penstock" / "imports"
        kept.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return kept / f"{digest.hexdigest()}.json"


def _load(file: Path) -> Structure | None:
    try:
        rows = msgspec.json.decode(file.read_bytes(), type=list[tuple[list[str], dict[str, set[str]]]])
    except (OSError, msgspec.DecodeError):
        return None
    return {frozenset(needs): modules for needs, modules in rows}


def _store(file: Path, structure: Structure) -> None:
    """Whole or not at all, in the place of the oldest of others'."""
    rows = [(sorted(needs), modules) for needs, modules in structure.items()]
    new = file.with_suffix(f".{os.getpid()}")
    try:
        new.write_bytes(msgspec.json.encode(rows))
        new.replace(file)
        for old in sorted(file.parent.glob("*.json"), key=os.path.getmtime)[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    except OSError:  # as of a full disk; it is a cache
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
