"""What must never be shown, and how text is shown without it. `logs` and `settings` call this; it does no I/O."""

import re
from typing import Final

HIDDEN: Final = "**********"
"""What stands in a secret's place: pydantic's `SecretStr` prints the same."""

_SECRET_NAME: Final = re.compile(
    r"passw|passphrase|secret|token|signature|authorization|access_?key|api_?key|private_?key|credential|connection_string",
    re.IGNORECASE,
)

# No class can run past a `/`, so a long text full of `://` costs one pass.
_USERINFO: Final = re.compile(r"://[^\s/?#\"']+@")

_PARAMETER: Final = re.compile(
    r"(?P<name>(?:^|[?&;\s\"'])(?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|"
    r"(?:ssl)?password|secret|token|access_token|api_key)=)[^\s&;\"'#]+",
    re.IGNORECASE,
)

# Control characters, line separators, and the marks that reverse the direction of what a terminal shows.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def one_line(text: str) -> str:
    """`text` with everything escaped that would break its line, steer a terminal, or fail to encode."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_secret_name(name: str) -> bool:
    """Whether a key of this name holds something nobody should read: `password`, `secret_access_key`, `X-Api-Key`."""
    return _SECRET_NAME.search(name.replace("-", "_")) is not None


def redact(text: str) -> str:
    """`text` without the userinfo of its URLs and without the signatures and tokens of their query strings."""
    if "://" in text:
        text = _USERINFO.sub(f"://{HIDDEN}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
    return text
