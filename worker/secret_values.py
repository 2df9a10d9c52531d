"""The secrets that the settings of this process hold, and how a text is shown without them.

`redact` knows a secret by its surroundings; here it is known by what it is, wherever it stands and in whichever encoding a server
sent it back. Called where text leaves the process: by worker/logs.py, worker/settling.py for dead letters, worker/ledger/sql.py,
the tracing, worker/doctor.py and worker/cli.py. What they call is made by `hiding`, out of the settings they work with.
"""

import base64
import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pydantic import BaseModel, SecretStr

from worker.redaction import HIDDEN, is_secret_name, one_line, redact

Hide = Callable[[str], str]
"""Takes secrets out of a text."""

SHORTEST: Final = 8
"""Characters. What is shorter would hide half the words there are."""
_SHORTEST_LINE: Final = 16
"""Of a secret of several lines, as a private key."""


class Hidden:
    """A `Hide` that is told later what to look for: of a process that has not read its settings yet."""

    def __init__(self) -> None:
        """Knows what `redact` knows."""
        self._hide: Hide = redact

    def __call__(self, text: str) -> str:
        return self._hide(text)

    def learn(self, settings: BaseModel) -> None:
        """From now on the secrets of these settings too."""
        self._hide = hiding(settings)


def hiding(settings: BaseModel) -> Hide:
    """What takes the secrets of these settings out of a text, on top of what `redact` knows.

    What is shorter than `SHORTEST`, or stands openly elsewhere in the settings (a password that is the user's name), is not looked
    for: it would hide ordinary words.
    """
    secret, open_ = set[str](), set[str]()
    for value, is_secret in _values("", settings):
        (secret if is_secret else open_).add(value)
    return hider(secret - open_)


def hider(secrets: Iterable[str]) -> Hide:
    """The same for these secrets."""
    forms = {form for secret in secrets for part in _parts(secret) for form in _forms(part)}
    # The longest first: one may begin with another.
    known = tuple(sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True))

    def hide(text: str) -> str:
        # Before `redact`: what it hides of a URL may end inside a password.
        for form in known:
            if form in text:
                text = text.replace(form, HIDDEN)
        return redact(text)

    return hide


def _values(name: str, value: Any) -> Iterator[tuple[str, bool]]:
    """Every text of the settings, and whether it is a secret."""
    if isinstance(value, SecretStr):
        yield from _opened(value.get_secret_value())
    elif isinstance(value, str) and is_secret_name(name):
        yield value, True
    elif isinstance(value, str):
        yield from _url(value) if "://" in value else [(value, False)]
    else:
        for key, each in _members(name, value):
            yield from _values(key, each)


def _members(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        return value
    if isinstance(value, Mapping):
        return ((str(key), each) for key, each in value.items())
    return ((name, each) for each in value) if isinstance(value, list | tuple) else ()


def _opened(secret: str) -> Iterator[tuple[str, bool]]:
    """The secret, and what is secret in it: a URL, a connection string, a SAS token or a key file has parts that are not."""
    yield secret, True
    if "://" in secret:
        yield from _url(secret)
    for pair in secret.removeprefix("?").replace("&", ";").split(";"):
        key, equals, value = pair.partition("=")
        if equals and key.strip().lower() in _SECRET_PAIRS:
            yield value, True
            yield unquote(value), True
    if secret.lstrip().startswith("{"):
        try:
            members = json.loads(secret)
        except (ValueError, RecursionError):
            return
        if isinstance(members, dict):
            yield from ((each, True) for key, each in members.items() if _is_text(key, each))


_SECRET_PAIRS: Final = frozenset(
    {"accountkey", "sharedaccesskey", "sharedaccesssignature", "sig", "password", "pwd"}
)


def _is_text(key: str, value: object) -> bool:
    # `token_uri` is the address of whoever gives out tokens.
    return isinstance(value, str) and is_secret_name(key) and "://" not in value


def _url(text: str) -> Iterator[tuple[str, bool]]:
    """What a URL holds: its password is a secret, all else is open."""
    try:
        parts = urlsplit(text)
        user, password, host = parts.username, parts.password, parts.hostname
    except ValueError:
        return
    for value in (password, unquote(password or "")):
        if value:
            yield value, True
    for value in (unquote(user or ""), host, parts.path.strip("/")):
        if value:
            yield value, False


def _parts(secret: str) -> Iterator[str]:
    """The whole, and each line of a long one: a traceback or a header may show only some."""
    yield secret
    stripped = secret.strip()
    yield stripped
    for line in stripped.splitlines() if "\n" in stripped else ():
        if len(line) >= _SHORTEST_LINE and not line.startswith("-----"):
            yield line.strip()


def _forms(secret: str) -> Iterator[str]:
    """As it is, and as URLs, JSON, XML, Python, our own logs and Base64 write it."""
    if len(secret) < SHORTEST:
        return
    yield secret
    for encoded in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        yield encoded
        yield _lower(encoded)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield json.dumps(secret)[1:-1].replace("/", "\\/")
    yield repr(secret)[1:-1]
    yield repr(secret.encode(errors="replace"))[2:-1]
    yield html.escape(secret)
    yield html.escape(secret, quote=False)
    yield one_line(secret)
    yield from _base64(secret.encode(errors="replace"))


def _lower(encoded: str) -> str:
    """`%2f` for `%2F`."""
    head, *rest = encoded.split("%")
    return "%".join([head, *(each[:2].lower() + each[2:] for each in rest)])


def _base64(secret: bytes) -> Iterator[str]:
    """What is the same in the Base64 of everything that holds the secret, as `user:password`: it may begin at any of three bits."""
    for before in range(3):
        padded = b"\0" * before + secret
        whole = base64.b64encode(padded[: len(padded) // 3 * 3]).decode()
        # The first character or two also tell of what stands before.
        core = whole[(0, 2, 3)[before] :]
        yield core
        yield core.translate(str.maketrans("+/", "-_"))
    yield base64.b64encode(secret).decode()
