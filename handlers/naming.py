"""Names that are safe on every store, still readable, and never shared by two URLs.

Called by the handlers when they build keys, and by worker/producer.py for staging.
"""

import re
from hashlib import sha256
from urllib.parse import unquote, urlsplit

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIXES = re.compile(r"(?:\.[A-Za-z0-9]{1,8}){1,2}$")
_STEM_LIMIT = 80


def resource_id(url: str) -> str:
    """The resource's id within its bundle: 16 hex digits (64 bits) of the URL's SHA-256.

    Two URLs of one bundle that share it would collide in a key; the create-only write then refuses the second one.
    """
    return sha256(url.encode()).hexdigest()[:16]


def resource_name(url: str) -> str:
    """`…/a/page.html?x=1` -> `page-<resource id>.html`: ASCII, 18 to about 120 characters, no dot in front."""
    base = _basename(url)
    suffix = match[0] if (match := _SUFFIXES.search(base)) and match.start() else ""
    stem = base[: len(base) - len(suffix)][:_STEM_LIMIT].strip("._-") or "index"
    return f"{stem}-{resource_id(url)}{suffix}"


def _basename(url: str) -> str:
    try:
        path = urlsplit(url).path
    except ValueError:  # `http://[` and its like name something all the same
        path = url
    last = path.rstrip("/").rpartition("/")[2]
    return _UNSAFE.sub("_", unquote(last)).lstrip(".")
