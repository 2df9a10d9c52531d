"""`Attributes` and keys as far as the server's text can hold them. Used by backends/postgres.py only."""

import json

from backends.base import Attributes


def columns_for(attributes: Attributes) -> tuple[str | None, str]:
    """Content type, and the metadata as JSON."""
    content_type = None if attributes.content_type is None else cleaned(attributes.content_type)
    metadata = {cleaned(name): cleaned(value) for name, value in attributes.metadata.items()}
    return content_type, json.dumps(metadata, ensure_ascii=False)


def cleaned(text: str) -> str:
    """The text as far as the server can hold it: no NUL, no lone surrogate."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()
