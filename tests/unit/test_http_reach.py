"""Where requests to an HTTP API go, whatever its name and its redirects lead to: cases 96 and 97."""

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from backends.base import Attributes, single
from backends.errors import PermissionDenied, StorageError, Unavailable
from backends.http_api import HttpBackend
from backends.http_api_options import HttpOptions
from tests.support.plain_http import Request, Response, serving
from tests.support.tls import Authority, tls_front

SECRETS = {"token": SecretStr("secret-token"), "headers": {"X-Api-Key": SecretStr("secret-key")}}
ELSEWHERE = ("127.0.0.0/8",)


class Host:
    """A server that gives `answers` for paths, and `here` for all others. `seen` are the requests."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Request] = []
        self.answers: dict[str, Response] = {}

    async def handle(self, request: Request) -> Response:
        self.seen.append(request)
        return self.answers.get(request.path, Response(body=b"here", headers={"Connection": "close"}))

    def redirect(self, path: str, to: str, status: int = 302) -> None:
        self.answers[path] = Response(status, {"Location": to})

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def shown(self) -> list[str]:
        """The paths of those requests that carried a secret of `SECRETS`."""
        return [request.path for request in self.seen if "secret" in repr(request.headers)]


@asynccontextmanager
async def host() -> AsyncIterator[Host]:
    made = Host()
    async with serving(made.handle) as made.url:
        yield made


@asynccontextmanager
async def connected(base_url: str, **options: Any) -> AsyncIterator[HttpBackend]:
    backend = await HttpBackend.connect(
        HttpOptions(base_url=base_url, health_path="/health", **SECRETS, **options)
    )
    try:
        yield backend
    finally:
        await backend.aclose()


async def read(backend: HttpBackend, key: str = "k") -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sets what each lookup of `files.example.org` or `files.svc` gives, one after the other; the last one stays.

    Returns the names that were looked up so far. This is what aiohttp and the interpreter's own loop ask.
    """
    asked: list[str] = []
    given: list[Sequence[str]] = []
    real = socket.getaddrinfo

    def lookup(name: Any, port: Any, *args: Any, **options: Any) -> Any:
        if str(name) not in {"files.example.org", "files.svc"}:
            return real(name, port, *args, **options)
        asked.append(str(name))
        answer = given.pop(0) if len(given) > 1 else given[0]
        return [found for each in answer for found in real(each, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    def say(*answers: Sequence[str]) -> list[str]:
        given[:] = answers
        return asked

    return say


def forget(backend: HttpBackend) -> None:
    """The next request looks the name up again."""
    connector: Any = backend._client._session.connector
    connector.clear_dns_cache()


# Names


async def test_case_97_a_name_that_leads_inside_later_is_not_followed(
    resolve: Callable[..., list[str]],
) -> None:
    async with host() as here:
        asked = resolve(["127.0.0.1"], ["127.0.0.2"])
        url = f"http://files.example.org:{here.port}"
        async with connected(url, allow_networks=("127.0.0.1/32",)) as backend:
            assert asked == ["files.example.org"]
            assert len(here.seen) == 1
            forget(backend)
            with pytest.raises(PermissionDenied, match=r"127\.0\.0\.2 is a private address"):
                await read(backend)
            assert asked == ["files.example.org"] * 2
        assert len(here.seen) == 1


async def test_case_97_what_was_looked_up_is_what_is_connected_to(resolve: Callable[..., list[str]]) -> None:
    async with host() as here:
        # Whoever looks a second time, to check or to connect, gets another address.
        asked = resolve(["127.0.0.1"], ["169.254.169.254"])
        async with connected(f"http://files.example.org:{here.port}", allow_networks=ELSEWHERE):
            assert asked == ["files.example.org"]
        assert len(here.seen) == 1


async def test_case_97_of_several_addresses_only_those_that_pass_are_used(
    resolve: Callable[..., list[str]],
) -> None:
    async with host() as here:
        resolve(["169.254.169.254", "127.0.0.2", "127.0.0.1"])
        url = f"http://files.example.org:{here.port}"
        async with connected(url, allow_networks=("127.0.0.1/32",)) as backend:
            assert await read(backend) == b"here"


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.169.254", "64:ff9b::a9fe:a9fe", "0.0.0.1"],
)
async def test_case_96_a_public_name_that_leads_inside_is_refused(
    resolve: Callable[..., list[str]], address: str
) -> None:
    resolve([address])
    with pytest.raises(PermissionDenied, match=r"files\.example\.org.*address"):
        async with connected("http://files.example.org:1"):
            pass


async def test_case_96_a_name_of_our_own_is_consent_to_private_addresses(
    resolve: Callable[..., list[str]],
) -> None:
    async with host() as here:
        resolve(["127.0.0.1"], ["169.254.169.254"])
        async with connected(f"http://files.svc:{here.port}") as backend:
            assert len(here.seen) == 1
            forget(backend)
            with pytest.raises(PermissionDenied, match="metadata"):
                await read(backend)


async def test_case_96_an_address_in_the_url_is_consent_to_it() -> None:
    async with host() as here, connected(here.url) as backend:
        assert await read(backend) == b"here"


@pytest.mark.parametrize("spelling", ["2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1"])
async def test_case_96_a_spelling_of_an_address_is_none(spelling: str) -> None:
    async with host() as here:
        with pytest.raises(StorageError) as refused:
            async with connected(f"http://{spelling}:{here.port}"):
                pass
        assert isinstance(refused.value, (PermissionDenied, Unavailable))
        assert here.seen == []


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with host() as here, host() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name)
        async with connected(here.url) as backend:
            assert await read(backend) == b"here"
        assert proxy.seen == []


# Redirects


async def test_case_97_a_redirect_to_another_host_is_not_followed() -> None:
    async with host() as here, host() as other:
        async with connected(here.url, allow_networks=ELSEWHERE) as backend:
            for status in (301, 302, 303, 307, 308):
                here.redirect("/k", f"{other.url}/k", status)
                with pytest.raises(StorageError, match=f"HTTP {status}"):
                    await read(backend)
        assert other.seen == []


async def test_case_97_a_redirect_to_a_listed_host_drops_every_credential() -> None:
    async with host() as here, host() as other:
        here.redirect("/k", f"{other.url}/signed?X-Amz-Signature=s")
        listed = {"redirect_hosts": (f"127.0.0.1:{other.port}",), "allow_networks": ELSEWHERE}
        async with connected(here.url, **listed) as backend:
            assert await read(backend) == b"here"
            # It sends us home again, to a place that it has chosen.
            other.redirect("/signed", f"{here.url}/admin")
            with pytest.raises(StorageError, match="302"):
                await read(backend)
        assert here.shown() == ["/health", "/k", "/k"]
        assert [request.path for request in here.seen] == here.shown()
        assert [request.path for request in other.seen] == ["/signed"] * 2
        assert other.shown() == []
        assert "cookie" not in other.seen[0].headers


async def test_case_97_home_again_is_without_credentials_too() -> None:
    async with host() as here, host() as other:
        here.redirect("/k", f"{other.url}/signed")
        other.redirect("/signed", f"{here.url}/admin")
        async with connected(here.url, redirect_hosts=("127.0.0.1:*",), allow_networks=ELSEWHERE) as backend:
            assert await read(backend) == b"here"
        assert [request.path for request in here.seen] == ["/health", "/k", "/admin"]
        assert here.shown() == ["/health", "/k"]


@pytest.mark.parametrize(
    "spelling",
    [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "localhost",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "169.254.169.254",
        "[::ffff:a9fe:a9fe]",
        "[fd00:ec2::254]",
        "0.0.0.0",  # noqa: S104 - nothing listens there
        "0",
    ],
)
async def test_case_97_each_hop_is_judged_by_its_address(spelling: str) -> None:
    async with host() as here, host() as other:
        here.redirect("/k", f"http://{spelling}:{other.port}/latest/meta-data")
        # Every host may be redirected to, but that does not make the operator's own machines places for it.
        async with connected(here.url, redirect_hosts=("*",)) as backend:
            with pytest.raises(StorageError):
                await read(backend)
        assert other.seen == []


@pytest.mark.parametrize(
    "location",
    [
        "http://name:word@{}/x",
        "ftp://{}/x",
        "//{}:/x",
        "http:///x",
        "http://[/x",
        "\\\\{}\\x",
        "file:///etc/passwd",
    ],
)
async def test_case_97_where_no_request_can_go_none_goes(location: str) -> None:
    async with host() as here, host() as other:
        here.redirect("/k", location.format(f"127.0.0.1:{other.port}"))
        async with connected(here.url, redirect_hosts=("*",), allow_networks=ELSEWHERE) as backend:
            # Some of them are odd ways to stay.
            with suppress(StorageError):
                await read(backend)
        assert other.seen == []


async def test_case_97_a_redirect_never_leads_from_https_to_http(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path, "trusted")
    async with host() as here, tls_front("127.0.0.1", here.port, authority.server()) as front:
        options: dict[str, Any] = {
            "redirect_hosts": ("*",),
            "allow_networks": ELSEWHERE,
            "ca_file": authority.trusted,
        }
        async with connected(f"https://127.0.0.1:{front.port}", **options) as backend:
            here.redirect("/k", f"{here.url}/in-the-clear")
            with pytest.raises(StorageError, match="302"):
                await read(backend)
            here.redirect("/k", f"https://127.0.0.1:{front.port}/still-secret")
            assert await read(backend) == b"here"
    assert [request.path for request in here.seen] == ["/health", "/k", "/k", "/still-secret"]


async def test_case_97_redirects_come_to_an_end() -> None:
    async with host() as here, host() as other:
        here.redirect("/k", f"{other.url}/k")
        other.redirect("/k", f"{other.url}/k")
        async with connected(here.url, redirect_hosts=("127.0.0.1:*",), allow_networks=ELSEWHERE) as backend:
            with pytest.raises(StorageError, match="more than 5 redirects"):
                await read(backend)
        assert len(other.seen) == 5


async def test_case_97_a_write_is_redirected_nowhere() -> None:
    async with host() as here, host() as other:
        here.redirect("/k", f"{other.url}/k", 307)
        options = {"redirect_hosts": ("*",), "allow_networks": ELSEWHERE, "reads": False, "verify": "none"}
        async with connected(here.url, **options) as backend:
            with pytest.raises(StorageError, match="307"):
                await backend.write("k", single(b"x"), Attributes())
        assert other.seen == []


@pytest.mark.parametrize("wrong", [{"allow_networks": ("10.0.0.1/8",)}, {"allow_networks": ("name",)}])
def test_networks_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpOptions(base_url="http://host", **wrong)
