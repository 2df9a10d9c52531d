"""What an object of a bundle is called in the bundle's archive. Called by worker/bundle_archive.py. Pure."""

import re
from hashlib import sha256
from typing import Final

from handlers.bundling.listing import check_path
from handlers.naming import resource_id, resource_name

_SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]{1,8}$")


def member_path(url: str, key: str, *, transformed: bool) -> str:
    """The resource's name; of a transformed one followed by what its key has behind the id, as `….zip/img/logo.png`.

    The same whatever the target's layout. No two objects of a bundle share it: every name holds the resource's id. Where an
    archive could not hold the name as it is, a digest of the key stands for it, behind that id.
    """
    name, id_ = resource_name(url), resource_id(url)
    path = name
    if transformed:
        # Every layout has the name, or at least the id, in its keys.
        stem = name[: name.rindex(id_) + len(id_)]
        mark = stem if stem in key else id_
        path = stem + key.partition(mark)[2] if mark in key else ""
    try:
        check_path(path)
    except ValueError:
        suffix = _SUFFIX.search(key)
        return f"{id_}~{sha256(key.encode()).hexdigest()[:16]}{suffix[0] if suffix else ''}"
    return path
