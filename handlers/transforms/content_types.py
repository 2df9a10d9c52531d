"""Content types by suffix, for parts whose type nobody told. Used by the decoders and by unzip and untar.

A table of its own: what `mimetypes` answers depends on the machine's files and on the Python that runs.
"""

from collections.abc import Mapping
from types import MappingProxyType


def content_type_of(name: str) -> str | None:
    """The type that the last suffix of `name` stands for; None for suffixes that are not in the table."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return _TYPES.get(suffix.lower()) if stem and dot else None


_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "7z": "application/x-7z-compressed",
        "avif": "image/avif",
        "avro": "application/vnd.apache.avro",
        "bin": "application/octet-stream",
        "bmp": "image/bmp",
        "bz2": "application/x-bzip2",
        "css": "text/css",
        "csv": "text/csv",
        "doc": "application/msword",
        "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "epub": "application/epub+zip",
        "flac": "audio/flac",
        "geojson": "application/geo+json",
        "gif": "image/gif",
        "gz": "application/gzip",
        "htm": "text/html",
        "html": "text/html",
        "ico": "image/vnd.microsoft.icon",
        "jar": "application/java-archive",
        "jpeg": "image/jpeg",
        "jpg": "image/jpeg",
        "js": "text/javascript",
        "json": "application/json",
        "jsonl": "application/jsonl",
        "jsonld": "application/ld+json",
        "log": "text/plain",
        "m4a": "audio/mp4",
        "md": "text/markdown",
        "mjs": "text/javascript",
        "mov": "video/quicktime",
        "mp3": "audio/mpeg",
        "mp4": "video/mp4",
        "ndjson": "application/x-ndjson",
        "odp": "application/vnd.oasis.opendocument.presentation",
        "ods": "application/vnd.oasis.opendocument.spreadsheet",
        "odt": "application/vnd.oasis.opendocument.text",
        "ogg": "audio/ogg",
        "parquet": "application/vnd.apache.parquet",
        "pdf": "application/pdf",
        "png": "image/png",
        "ppt": "application/vnd.ms-powerpoint",
        "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "ps": "application/postscript",
        "rdf": "application/rdf+xml",
        "rss": "application/rss+xml",
        "rtf": "application/rtf",
        "sql": "application/sql",
        "svg": "image/svg+xml",
        "tar": "application/x-tar",
        "tif": "image/tiff",
        "tiff": "image/tiff",
        "tsv": "text/tab-separated-values",
        "ttf": "font/ttf",
        "txt": "text/plain",
        "wav": "audio/wav",
        "warc": "application/warc",
        "wasm": "application/wasm",
        "webm": "video/webm",
        "webp": "image/webp",
        "woff": "font/woff",
        "woff2": "font/woff2",
        "xhtml": "application/xhtml+xml",
        "xls": "application/vnd.ms-excel",
        "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "xml": "application/xml",
        "xsd": "application/xml",
        "xsl": "application/xslt+xml",
        "xz": "application/x-xz",
        "yaml": "application/yaml",
        "yml": "application/yaml",
        "zip": "application/zip",
        "zst": "application/zstd",
    }
)
"""From the IANA registry where it has the type (https://www.iana.org/assignments/media-types), else what is customary."""
