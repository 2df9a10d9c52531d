"""What nobody caught, told on standard error without secrets. worker/cli.py has it around every command.

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


def tell(error: BaseException, hide: Hide) -> None:
    """Its traceback, with those of its causes."""
    sys.stderr.write(hide("".join(traceback.format_exception(error))))


@contextmanager
def hidden(hide: Hide) -> Iterator[None]:
    """Errors in threads, and those that Python can only ignore, are told so while the block runs."""

    def unraisable(seen: "UnraisableHookArgs") -> None:
        sys.stderr.write(f"{seen.err_msg or 'Exception ignored in'}: {type(seen.object).__qualname__}\n")
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
