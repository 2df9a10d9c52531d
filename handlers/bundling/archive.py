"""Archives by the name of their format. Called by the relay when a bundle is complete, and by who checks the configuration."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import MappingProxyType
from typing import Final

from backends.registry import Entry, Registry
from handlers.bundling.base import Member, Writer
from handlers.bundling.listing import listed, relisted

FORMATS: Final[Registry[Writer]] = Registry(
    "archive format",
    MappingProxyType(
        {
            "tar.gz": Entry("handlers.bundling.tar_gzip:TarGzip"),
            "tar.zst": Entry("handlers.bundling.tar_zstd:TarZstd", "transforms"),
            "zip": Entry("handlers.bundling.zip_writer:Zip"),
        }
    ),
)
"""The names are the suffixes too. `load` is the check that a format can be written here."""


async def archive(
    format_: str, members: Callable[[], AsyncGenerator[Member, None]]
) -> AsyncGenerator[bytes, None]:
    """The archive, in chunks of at most `CHUNK_SIZE` bytes and a little, for `StorageBackend.write`.

    `members` gives the same members in the same order whenever it is called: once to look at all of them, once to write.
    The same members give the same bytes, however their streams are cut into chunks; what the compressed formats need for that
    is in docs/adr/0016-bundling.md. Whoever stops early closes the generator, and with it the member that is open.

    Raises, in place of the first byte, `UnknownName`, `MissingExtra`, and `ValueError` for paths that cannot be used or are
    there twice; in place of the end, `IntegrityError` for a member that is not as promised or a list that changed, and whatever
    opening and reading raise, unchanged.
    """
    writer = FORMATS.load(format_)()
    async with aclosing(members()) as first:
        expected = await listed(first)
    async with (
        aclosing(members()) as second,
        aclosing(relisted(second, expected)) as same,
        aclosing(writer.write(same)) as chunks,
    ):
        async for chunk in chunks:
            yield chunk
