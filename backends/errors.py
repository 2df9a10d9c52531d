"""What can go wrong with bytes at rest, and whether trying again may help.

    StorageError
    ├── NotFound             no object under that key
    ├── Conflict             another object lies under that key already; it was left as it is
    ├── IntegrityError       the bytes are not the bytes that were promised
    ├── InvalidKey           the key cannot be used with this backend
    ├── PermissionDenied     the store refuses these credentials that operation
    ├── Unsupported          the backend says so in its `Features`
    ├── MissingExtra         the adapter's SDK is not installed
    └── Unavailable          the store does not answer, is throttling, or is out of room
        └── CircuitOpen      it failed so often that it was not even asked

Adapters raise these and nothing else: one `_translate` per adapter, always `raise … from exc`. `retryable` is a property
of the class, so that the one place that decides (worker/disposition.py) needs no knowledge of any SDK.
"""


class StorageError(Exception):
    """The root. The message names the backend and the key, never a credential."""

    retryable = False


class NotFound(StorageError):
    """No object under that key. Retryable: a store may list or announce an object before every replica has it."""

    retryable = True


class Conflict(StorageError):
    """An object with other content lies under the key. It was not overwritten."""


class IntegrityError(StorageError):
    """Size or digest differ from what was promised. Retryable: a torn transfer looks the same as a wrong promise."""

    retryable = True


class InvalidKey(StorageError):
    """The key is empty, leaves its root, or is longer than the store allows."""


class PermissionDenied(StorageError):
    """The store refuses. Retryable: credentials are renewed and policies mended while messages wait."""

    retryable = True


class Unsupported(StorageError):
    """The backend cannot do this, and says so in its `Features`."""


class MissingExtra(StorageError):
    """The adapter needs a package that is not installed; the message holds the command that installs it."""


class Unavailable(StorageError):
    """No answer, throttled, or out of room: later may be better."""

    retryable = True


class CircuitOpen(Unavailable):
    """Not tried: a circuit breaker leaves the store alone. No I/O has happened."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        """`retry_after` is in seconds: earlier, nothing is let through."""
        super().__init__(message)
        self.retry_after = retry_after
