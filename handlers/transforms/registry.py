"""The transforms that routes may name. A transform's packages are imported only when a route names it.

`worker/steps.py` makes them; each class has `Options`, and is constructed with them.
"""

from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ConfigDict

from backends.registry import Entry, Registry
from handlers.transforms.base import Transform


class NoOptions(BaseModel):
    """For transforms that have nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


KEYED: Final = frozenset({"decrypt", "encrypt"})
"""Those that are constructed with a key ring in place of options."""

ALWAYS: Final = frozenset({"encrypt", "max_size"})
"""Those that no payload goes without: they are applied to an archive that has nothing in it as well."""

TRANSFORMS: Registry[Transform] = Registry(
    "transform",
    MappingProxyType(
        {
            "bunzip2": Entry("handlers.transforms.bunzip2:Bunzip2", extra="transforms"),
            "compress": Entry("handlers.transforms.compress:Compress", extra="transforms"),
            "decode": Entry("handlers.transforms.content_encoding:Decode", extra="transforms"),
            "decrypt": Entry("handlers.transforms.decrypt:Decrypt", extra="encryption"),
            "encrypt": Entry("handlers.transforms.encrypt:Encrypt", extra="encryption"),
            "gunzip": Entry("handlers.transforms.gunzip:Gunzip", extra="transforms"),
            "untar": Entry("handlers.transforms.untar:Untar", extra="transforms"),
            "unxz": Entry("handlers.transforms.unxz:Unxz", extra="transforms"),
            "unzip": Entry("handlers.transforms.unzip:Unzip", extra="transforms"),
            "unzstd": Entry("handlers.transforms.unzstd:Unzstd", extra="transforms"),
        }
    ),
)
