"""Archives by the name of their format. Called by the relay when a bundle is complete, and by who checks the configuration."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from types import MappingProxyType
from typing import Final, TypeVar

from backends.registry import Entry, Registry
from handlers.bundling.base import Member, Piece, Writer
from handlers.bundling.listing import listed, relisted
from handlers.bundling.tar_writer import tar

Made = TypeVar("Made")

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
    async with aclosing(_checked(FORMATS.load(format_)().write, members)) as chunks:
        async for chunk in chunks:
            yield chunk


async def plain_tar(members: Callable[[], AsyncGenerator[Member, None]]) -> AsyncGenerator[Piece, None]:
    """What is compressed in a tar.gz and a tar.zst of the members. Raises as `archive` does."""
    async with aclosing(_checked(tar, members)) as pieces:
        async for piece in pieces:
            yield piece


async def _checked(
    write: Callable[[AsyncIterator[Member]], AsyncGenerator[Made, None]],
    members: Callable[[], AsyncGenerator[Member, None]],
) -> AsyncGenerator[Made, None]:
    """What `write` makes of the members, after a look at all of them."""
    async with aclosing(members()) as first:
        expected = await listed(first)
    async with (
        aclosing(members()) as second,
        aclosing(relisted(second, expected)) as same,
        aclosing(write(same)) as made,
    ):
        async for each in made:
            yield each
