"""What may keep a bundle's manifest or archive from being written, besides the store. Raised by worker/manifest.py and bundle_archive.py.

ManifestError
├── TargetGone      the bundle lies in a target that is not configured
└── CannotArchive   the archive cannot be made here, or not at all
"""


class ManifestError(Exception):
    """The root. `retryable`: another worker may be able to, or this one when it has what the message says."""

    retryable = True


class TargetGone(ManifestError):
    """The bundle lies in a target that is not configured. Retryable: it may be configured again."""


class CannotArchive(ManifestError):
    """The archive cannot be made here, or not at all."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        """See `ManifestError`."""
        super().__init__(message)
        self.retryable = retryable
