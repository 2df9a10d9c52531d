"""How the reading of zips says no. Used by the other zip modules of this room."""

from typing import NoReturn

from handlers.errors import Refused


def corrupt(detail: str) -> NoReturn:
    """Not as it was written, or written wrong."""
    raise Refused("payload_corrupt", f"zip: {detail}")


def unsafe(detail: str) -> NoReturn:
    """Could do harm, or be one thing to us and another to someone else."""
    raise Refused("payload_unsafe", f"zip: {detail}")


def unsupported(detail: str) -> NoReturn:
    """Perhaps all right, but not decoded here."""
    raise Refused("payload_unsupported", f"zip: {detail}")
