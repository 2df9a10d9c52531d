"""The end of a connection whose other side may be gone: for the proxies of this folder."""

import asyncio

__all__ = ["drop"]


def drop(writer: asyncio.StreamWriter) -> None:
    """Gives the connection up at once, with whatever is still to be delivered: that would outlive the event loop.

    A transport that was closed with something to deliver, and has delivered it, cannot be aborted any more (CPython 3.11 raises
    AttributeError from `abort`); its socket is closed by then.
    """
    if writer.get_extra_info("socket").fileno() != -1:
        writer.transport.abort()
