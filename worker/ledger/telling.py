"""What the ledger is told by others, without secrets: texts of errors, and what stores call their objects.

Called by worker/ledger/sql.py before anything is written. A server may put whatever it was sent into either.
"""

from collections.abc import Sequence
from dataclasses import replace

from worker.ledger.values import Entry, StoredObject, Transfer
from worker.secret_values import Hide


def told(transfers: Sequence[Transfer], hide: Hide) -> tuple[Transfer, ...]:
    """The same transfers."""
    return tuple(
        replace(
            each,
            error=each.error and hide(each.error),
            stored=each.stored and _stored(each.stored, hide),
        )
        for each in transfers
    )


def told_entry(entry: Entry, hide: Hide) -> Entry:
    """The same entry; itself where there is nothing to hide, as nearly always."""
    missing = told(entry.missing, hide)
    resource = entry.resource
    if resource is not None:
        objects = tuple(_stored(each, hide) for each in resource.objects)
        if objects != resource.objects:
            resource = replace(resource, objects=objects)
    if resource is entry.resource and missing == entry.missing:
        return entry
    return replace(entry, missing=missing, resource=resource)


def _stored(stored: StoredObject, hide: Hide) -> StoredObject:
    etag, version = stored.etag and hide(stored.etag), stored.version and hide(stored.version)
    if (etag, version) == (stored.etag, stored.version):
        return stored
    return replace(stored, etag=etag, version=version)
