"""What nobody caught, or nobody foresaw, told without secrets. worker/cli.py has it around every command.

Python's own ways print messages as they are: of an error in a thread, of one in `__del__`, of one that ends the process.
"""

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.secret_values import Hide

if TYPE_CHECKING:
    # Known to type checkers only.
    from sys import UnraisableHookArgs


def traceback_of(error: BaseException) -> str:
    """Frames and messages, with those of its causes: a log line's `exception`.

    Never `exc_info`: in a process that does not configure structlog, as a fetcher's may be, its default shows the values of all
    variables.
    """
    return "".join(traceback.format_exception(error))


def tell(error: BaseException, hide: Hide) -> None:
    """Its traceback, on standard error."""
    sys.stderr.write(hide(traceback_of(error)))


@contextmanager
def hidden(hide: Hide) -> Iterator[None]:
    """Errors in threads, and those that Python can only ignore, are told so while the block runs."""

    def unraisable(seen: "UnraisableHookArgs") -> None:
        # Its repr is anybody's, its name is not.
        name = getattr(seen.object, "__qualname__", type(seen.object).__qualname__)
        sys.stderr.write(f"{seen.err_msg or 'Exception ignored in'}: {name}\n")
        if seen.exc_value is not None:
            tell(seen.exc_value, hide)

    def in_thread(seen: threading.ExceptHookArgs) -> None:
        if seen.exc_value is not None and not isinstance(seen.exc_value, SystemExit):
            sys.stderr.write(f"Exception in thread {seen.thread.name if seen.thread else ''}:\n")
            tell(seen.exc_value, hide)

    before = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = unraisable, in_thread
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = before
