"""Small writes of the file backend, several at a time. Called by `backends.file` only.

A write that fits into memory costs a handful of short system calls, and each of them hands the interpreter's lock from
thread to thread, which costs more than the call. So few threads store many small writes each: the directory is opened and
synced once for all that go into it.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from itertools import groupby
from threading import Lock
from typing import NamedTuple

from backends.base import Receipt
from backends.file_transfer import Upload
from backends.file_tree import Tree

_THREADS = 4
"""Batches stored at once: enough to keep a disk busy, few enough not to fight over the interpreter's lock."""
_BATCH = 16


class _Small(NamedTuple):
    upload: Upload
    pieces: Sequence[bytes]
    outcome: Future[Receipt]


class SmallWrites:
    """Gathers small writes while others are stored."""

    def __init__(self, tree: Tree, pool: Executor) -> None:
        """Uses at most four threads of the pool."""
        self._tree = tree
        self._pool = pool
        self._lock = Lock()
        self._waiting: deque[_Small] = deque()
        self._storing = 0

    def submit(self, upload: Upload, pieces: Sequence[bytes]) -> Future[Receipt]:
        """Store all of an upload that was not begun yet. Raises `RuntimeError` when the pool has no thread for it."""
        small = _Small(upload, pieces, Future())
        with self._lock:
            self._waiting.append(small)
            if self._storing == _THREADS:
                return small.outcome
            self._storing += 1
        try:
            self._pool.submit(self._store)
        except RuntimeError:
            with self._lock:
                self._storing -= 1
                with suppress(ValueError):
                    self._waiting.remove(small)
            raise
        return small.outcome

    def _store(self) -> None:
        """Store what waits, a batch at a time, until nothing does."""
        while True:
            with self._lock:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
                if not batch:
                    self._storing -= 1
                    return
            _store_together(self._tree, batch)


def _store_together(tree: Tree, batch: Sequence[_Small]) -> None:
    """Carry out small writes side by side: one opening and one fsync of a directory for all that go into it.

    Each has its own outcome: one that fails, or is cancelled, does not concern the others.
    """
    waiting = [small for small in batch if small.outcome.set_running_or_notify_cancel()]
    for parent, group in groupby(sorted(waiting, key=_parent), key=_parent):
        _store_in(tree, parent, list(group))


def _store_in(tree: Tree, parent: str, group: Sequence[_Small]) -> None:
    receipts: list[tuple[_Small, Receipt]] = []
    try:
        directory = tree.directory(parent, create=True)
        try:
            # Step by step for all of them: what the first fsync makes durable the next need not wait for.
            begun = [small for small in group if _done(small, lambda it: _begin(it, directory))]
            synced = [small for small in begun if _done(small, lambda it: it.upload.sync())]
            for small in synced:
                _done(small, lambda it: receipts.append((it, _commit(it))))
            if receipts:
                tree.sync(directory, parent)
        finally:
            os.close(directory)
    except BaseException as exc:  # noqa: BLE001 - it goes to everyone who waits
        for small in group:
            if not small.outcome.done():
                small.outcome.set_exception(exc)
    else:
        for small, receipt in receipts:
            small.outcome.set_result(receipt)


def _begin(small: _Small, directory: int) -> None:
    small.upload.begin(directory, shared=True)
    small.upload.append(small.pieces)


def _commit(small: _Small) -> Receipt:
    receipt = small.upload.commit()
    small.upload.leave()
    return receipt


def _done(small: _Small, step: Callable[[_Small], None]) -> bool:
    """One step of one write. When it fails, that write is undone and its outcome told."""
    try:
        step(small)
    except BaseException as exc:  # noqa: BLE001 - it goes to the one who waits
        small.upload.discard()
        small.outcome.set_exception(exc)
        return False
    return True


def _parent(small: _Small) -> str:
    return small.upload.parent
