"""How the server logs: one line per event on stderr."""

import logging


def set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())
