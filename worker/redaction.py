"""What must never be shown, and how text is shown without it. Everything that writes text calls this; it does no I/O.

`redact` knows what secrets look like, whosesoever they are: URLs, headers, connection strings, keys. worker/secret_values.py adds
what the settings of this process hold.
"""

import re
from typing import Final

HIDDEN: Final = "**********"
"""What stands in a secret's place: pydantic's `SecretStr` prints the same."""

_NAMES: Final = (
    "passw|passphrase|secret|token|signature|authorization|access_?key|api_?key|private_?key|credential|"
    "connection_string"
)
_SECRET_NAME: Final = re.compile(_NAMES, re.IGNORECASE)

# Every pattern below begins with something rare, and none of its classes is both unbounded and able to run past the next such
# beginning: a long text full of `://` costs one pass.

_USERINFO: Final = re.compile(
    r"(?P<slashes>:\\?/\\?/)"
    # Up to the last @ before the path; or, where a password holds a / that nobody encoded, up to the first @ after it.
    r"(?:[^\s/?#\"'\\]+@|(?!\[)[^\s/:@]{0,256}:(?!\d+(?:[/?#\s\"']|$))[^\s@]{1,256}@(?:[^\s/?#\"'@]+@)*)"
)
_ENCODED_USERINFO: Final = re.compile(r"(?P<slashes>%3A%2F%2F)[^\s/?#\"'&]{1,256}?%40", re.IGNORECASE)

# `name=value` in query strings, in libpq's and Azure's connection strings, in an AWS4 header. Values may be quoted as libpq has it.
_PARAMETER: Final = re.compile(
    r"(?P<name>(?:^|[?#&;,\s\"'({])"
    rf"(?:[\w.-]{{0,64}}(?:{_NAMES.replace('_?', '[_-]?')})[\w.-]{{0,64}}"
    r"|AWSAccessKeyId|AccountKey|SharedAccessKey|sig|pwd|delegation)"
    r"(?:=|%3D))"
    r"(?:'(?:[^'\\]|\\.){0,4096}'|\"(?:[^\"\\]|\\.){0,4096}\"|[^\s&;,\"'#<>)}]+)",
    re.IGNORECASE,
)

# `"name": "value"` in JSON and in what Python prints of mappings, headers and arguments.
_MEMBER: Final = re.compile(
    rf"(?P<name>[\"'][\w.-]{{0,64}}(?:{_NAMES.replace('_?', '[_-]?')})[\w.-]{{0,64}}\\?[\"']\s{{0,4}}[:,=]\s{{0,4}}[bru]?)"
    r"(?P<quote>\\?[\"'])(?:(?!(?P=quote))(?:[^\\]|\\.)){1,16384}",
    re.IGNORECASE | re.DOTALL,
)

# A header as HTTP writes it, also after a line end that was escaped. What follows on its line belongs to it.
_HEADER: Final = re.compile(
    r"(?P<name>(?:(?<![\w-])|(?<=\\[nr]))"
    r"(?:(?:proxy-)?authorization|x-[\w-]{0,64}?(?:token|key|signature|secret)|(?:set-)?cookie)\s{0,4}:\s{0,4})"
    r"[^\r\n\"'<\\]+",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(
    r"(?P<name>\b(?:bearer|basic|negotiate|sharedkey(?:lite)?)\s{1,4})(?=[^\s\"']*[0-9=])[\w.~+/=:-]{8,}",
    re.IGNORECASE,
)
_PRIVATE_KEY: Final = re.compile(
    r"(?P<name>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----)(?:[^-]|-(?!-)){1,16384}"
)
# What JSON Web Tokens and Google's access tokens begin with. What only begins so is taken too, and left as it is: within it, no
# other beginning needs to be looked at.
_TOKEN: Final = re.compile(
    r"\b(?:(?P<token>eyJ[\w-]{8,}+\.[\w-]{4,}(?:\.[\w-]*)?|ya29\.[\w-]{8,})|eyJ[\w-]*+)"
)

_WORDS: Final = (
    *(
        "passw",
        "passphrase",
        "secret",
        "token",
        "signature",
        "authorization",
        "credential",
        "connection_string",
    ),
    *("accesskey", "access_key", "access-key", "apikey", "api_key", "api-key", "privatekey", "private_key"),
    *(
        "private-key",
        "private key",
        "x-",
        "accountkey",
        "sig=",
        "sig%3d",
        "pwd",
        "delegation",
        "cookie",
        "bearer",
    ),
    *("basic", "negotiate", "sharedkey", "eyj", "ya29."),
)
"""One of them is in everything that the patterns beside those of userinfo find, in lower case."""

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
    """`text` without what looks like a secret: userinfo of URLs, signatures and tokens in query strings, headers, private keys."""
    if "/" in text:
        text = _USERINFO.sub(rf"\g<slashes>{HIDDEN}@", text)
    if "%40" in text:
        text = _ENCODED_USERINFO.sub(rf"\g<slashes>{HIDDEN}%40", text)
    lower = text.lower()
    # Most texts end here: the patterns below cost a hundred times what this does.
    if not any(word in lower for word in _WORDS):
        return text
    if "=" in text or "%3" in text:
        text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
    if '"' in text or "'" in text:
        text = _MEMBER.sub(rf"\g<name>\g<quote>{HIDDEN}", text)
    text = _PRIVATE_KEY.sub(rf"\g<name>{HIDDEN}", _HEADER.sub(rf"\g<name>{HIDDEN}", text))
    return _TOKEN.sub(
        lambda found: HIDDEN if found["token"] else found[0], _SCHEME.sub(rf"\g<name>{HIDDEN}", text)
    )
