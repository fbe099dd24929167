"""What `import penstock` gives, and what it does not load."""

import subprocess
import sys

import penstock


def test_every_public_name_resolves() -> None:
    for name in penstock.__all__:
        assert getattr(penstock, name).__name__ == name
    assert set(penstock.__all__) <= set(dir(penstock))


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import penstock, sys; print({'torch', 'lmdb', 'aiohttp', 'msgspec'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(penstock, "NoSuchThing")
