"""The text of the page's parts, as they lie beside this module."""

from importlib.resources import files


def text_of(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")
