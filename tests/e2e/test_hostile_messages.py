"""Hostile messages through the whole worker on its embedded parts: what is logged, kept and shown of them."""

import asyncio
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from handlers.layouts import BundleFacts, ResourceFacts, make_layout
from handlers.naming import resource_name
from tests.support.hostile_messages import ACCEPTED, as_json
from worker import bootstrap, logs
from worker.cli import app
from worker.dead_letters import Letter, look_at
from worker.queues.base import OutgoingMessage
from worker.redaction import one_line
from worker.settings import Settings, load_settings

PAYLOAD = b"payload"


class Home:
    """A home with a payload in staging."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "staging").mkdir()
        (path / "staging" / "payload").write_bytes(PAYLOAD)

    @property
    def settings(self) -> Settings:
        file = self.path / "transload.yaml"
        return load_settings(file=file if file.exists() else None, home=self.path, environ={})

    @property
    def location(self) -> str:
        return (self.path / "staging" / "payload").as_uri()

    def message(self, **changes: Any) -> bytes:
        """A `resource.fetched` that is fine; `part__field=value` changes a field of a part."""
        content: dict[str, Any] = {
            "type": "resource.fetched",
            "version": 1,
            "id": "fine",
            "bundle": {"bid": "test-fine", "recipe_id": "r", "resources_count": 1},
            "resource": {"url": "https://example.com/fine"},
            "payload": {"location": self.location},
        }
        for path, value in changes.items():
            *parts, name = path.split("__")
            part = content
            for each in parts:
                part = part[each]
            part[name] = value
        return as_json(content).encode(errors="surrogatepass")

    def run(self, bodies: Sequence[bytes], form: Any) -> str:
        """Have the worker take all of them; what it logged."""
        stream = io.StringIO()
        logs.configure("info", form, stream)
        asyncio.run(self._run(bodies))
        return stream.getvalue()

    async def _run(self, bodies: Sequence[bytes]) -> None:
        async with bootstrap.open_queue(self.settings) as queue:
            await queue.send([OutgoingMessage(body, {"n": str(n)}) for n, body in enumerate(bodies)])
        async with bootstrap.open_service(self.settings, admin=False) as service:
            await service.run(until_idle=True)

    def letters(self) -> Mapping[int, Letter]:
        """The dead letters, by the number of the body."""

        async def look() -> list[Letter]:
            async with bootstrap.open_queue(self.settings) as queue, look_at(queue) as look:
                found: list[Letter] = []
                while page := await look.more():
                    found += page
                return found

        return {int(letter.attributes["n"]): letter for letter in asyncio.run(look())}

    def shown(self, *arguments: str) -> str:
        """What a command prints, which has nothing for a terminal to obey."""
        done = CliRunner().invoke(app, ["--home", str(self.path), *arguments])
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        for line in done.stdout.split("\n"):
            assert one_line(line) == line, arguments
        return done.stdout

    def told(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.shown(*arguments, "--json").splitlines()]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def bad(home: Home) -> dict[str, bytes]:
    """Bodies by the name of the case that each is about; none can ever be carried out."""
    terminal = "\x1b[2J\x1b]0;owned\x07\r\n\u202e\u2028{}".format('{"level": "info", "event": "all is well"}')
    megabyte = "\U0001f600\r\n\x1b[31m" * 24_000
    fine = home.message()
    return {
        "empty": b"",
        "not UTF-8": b"\xff\xfe\r\n\x1b[31m",
        "byte order mark": b"\xef\xbb\xbf" + fine,
        "scalar": json.dumps(terminal).encode(),
        "lines": b"\r\n" * 100_000,
        "deep": b'{"a":' * 40_000,
        "digits": home.message(payload__size=1).replace(b'"size": 1', b'"size": ' + b"1" * 200_000),
        "not a number": fine.replace(b'"version": 1', b'"version": NaN'),
        "surrogate": home.message(resource__meta={"a": "\ud800"}),
        "twice": b'{"\\r\\n\\u001b[31m\\u202e": 1, "\\r\\n\\u001b[31m\\u202e": 2}',
        "twice, long": as_json({"x": megabyte[:50_000]}).encode()[:-1] + b', "x": 1}',
        "too large": json.dumps({"id": megabyte}).encode(),
        "type": home.message(type=terminal),
        "type, long": home.message(type=megabyte[:20_000]),
        "type, odd": home.message(type={terminal: [terminal]}),
        "version": home.message(version=[terminal] * 1_000),
        "id": home.message(id=terminal),
        "bid": home.message(bundle__bid=terminal),
        "url": home.message(resource__url=terminal),
        "url, long": home.message(resource__url="https://x/" + "\U0001f600" * 9_000),
        "many wrong": home.message(bundle={}, resource={"url": 1}, payload={"size": "x", "sha256": terminal}),
        "field called so": home.message(payload={terminal: terminal}),
        "elsewhere": home.message(payload__location="https://x/\u202e\u2028" + "\U0001f600" * 8_000),
        "by its spelling": home.message(payload__location=home.location + "/%0d%0a%1b[31m/../%e2%80%ae"),
        "sns": json.dumps({"Type": "Notification", "Message": terminal}).encode(),
        "base64": json.dumps({"specversion": "1.0", "data_base64": terminal}).encode(),
    }


@pytest.mark.parametrize("form", ["json", "console"])
def test_case_100_a_bad_message_is_one_bounded_line_and_a_letter_with_its_bytes(
    home: Home, form: str
) -> None:
    bodies = bad(home)
    log = home.run([*bodies.values(), home.message()], form)
    lines = log.split("\n")
    assert lines.pop() == ""
    failed = [line for line in lines if "message failed" in line]
    assert len(failed) == len(bodies)
    rest = [line for line in lines if line not in failed]
    assert len(rest) == 2, "the one bundle is complete, and announced"
    assert max(len(line.encode()) for line in lines) < 4_000
    for line in lines:
        assert one_line(line) == line
    if form == "json":
        assert {json.loads(line)["event"] for line in lines} == {
            "message failed",
            "bundle complete",
            "bundle published",
        }
    letters = home.letters()
    assert {name: letters[n].body == body for n, (name, body) in enumerate(bodies.items())} == dict.fromkeys(
        bodies, True
    )
    assert {letter.reason for letter in letters.values()} == {
        *("malformed", "unknown_type", "unknown_version", "staging_not_allowed"),
    }
    assert all(letter.detail and one_line(letter.detail) == letter.detail for letter in letters.values())
    home.shown("dlq", "ls")
    for letter in letters.values():
        assert len(letter.detail or "") < 4_000
    assert len(home.told("bundles")) == 1


def test_case_102_and_108_a_name_is_data_wherever_it_goes(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.path)
    before = set(sys.modules)
    bodies = [
        home.message(
            id=name,
            bundle={
                "bid": f"test-{n}",
                "recipe_id": name,
                "primary_url": name,
                "resources_count": 1,
                "meta": {name: name},
                # Nothing of this is asked: where things go is the configuration's alone.
                "backend": "module",
                "module": "os:system",
            },
            resource={
                "url": name,
                "content_type": name,
                "meta": {"table": name, "module": "tests.support.cli:Transload"},
            },
            payload={
                "location": home.location,
                "staging": name,
                "backend": {"backend": "module", "module": "antigravity"},
                "endpoint_url": "http://169.254.169.254/",
            },
            targets=[name],
            transforms=["antigravity:geohash", name],
            route=name,
        )
        for n, name in enumerate(ACCEPTED)
    ]
    log = home.run(bodies, "json")
    assert len(log.splitlines()) == 2 * len(ACCEPTED)
    assert home.letters() == {}
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not loaded & {"antigravity", "os", "this"}
    published = {each["bundle_id"]: each for each in home.told("completions")}
    layout = make_layout("oc", "", keeps_attributes=False)
    stored = home.path / "storage"
    expected: set[str] = set()
    for n, name in enumerate(ACCEPTED):
        bid = f"test-{n}"
        assert (published[bid]["recipe_id"], published[bid]["primary_url"]) == (name, name)
        bundle = BundleFacts(bid)
        key = layout.resource_key(bundle, ResourceFacts(resource_name(name)))
        assert (stored / key).read_bytes() == PAYLOAD
        facts = json.loads((stored / f"{key}.meta").read_bytes())
        assert (facts["url"], facts["recipe_id"], facts["content_type"], facts["meta"]["table"]) == (
            name,
        ) * 4
        manifest = json.loads((stored / layout.manifest_key(bundle)).read_bytes())
        assert (manifest["recipe_id"], manifest["meta"]) == (name, {name: name})
        expected |= {key, f"{key}.meta", layout.manifest_key(bundle)}
    assert {str(path.relative_to(stored)) for path in stored.rglob("*") if path.is_file()} == expected
    assert not [*home.path.rglob("pwned")]
    told = {each["bid"]: each for each in home.told("bundles", "--limit", "1000")}
    assert [told[f"test-{n}"]["recipe_id"] for n in range(len(ACCEPTED))] == list(ACCEPTED)
    for command in (["bundles", "--limit", "1000"], ["completions"], ["status"], ["find"]):
        home.shown(*command)
    rows = csv.DictReader(io.StringIO(home.shown("audit", "export", "--format", "csv")))
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]


def test_case_102_one_bundle_is_shown_as_data(home: Home) -> None:
    names = ("\u202egpj.exe", "[red]x[/red]", "'; DROP TABLE bundles; --", "=1+1")
    bodies = [
        home.message(id=name, bundle__bid=f"test-{n}", bundle__recipe_id=name, resource__url=name)
        for n, name in enumerate(names)
    ]
    home.run(bodies, "json")
    found = home.shown("find")
    for n, (name, body) in enumerate(zip(names, bodies, strict=True)):
        ((one,), (hit,)) = (
            home.told("show", f"test-{n}"),
            home.told("find", "--url", name.replace("[", "[[]")),
        )
        assert one["resources"][0]["url"] == hit["url"] == name
        assert one_line(name) in found
        assert one_line(name) in home.shown("show", f"test-{n}")
        (home.path / "message.json").write_bytes(body)
        assert one_line(name) in home.shown("explain", str(home.path / "message.json"))
    home.shown("verify", "test-0")


def test_cases_77_to_79_a_resource_has_one_key_and_counts_once_whatever_its_messages_say(home: Home) -> None:
    (home.path / "transload.yaml").write_text(
        'targets: {main: {layout: "{recipe_id}/{meta[a]}/{bid}/{name}"}}\n'
    )

    def message(number: int, **changes: Any) -> bytes:
        return home.message(id=f"m{number}", bundle__resources_count=2, **changes)

    said: list[dict[str, Any]] = [
        {"resource__meta": {"a": "first"}},
        {"resource__meta": {"a": "../first"}},
        {"resource__meta": {"a": "first"}, "bundle__recipe_id": "other"},
        {"resource__meta": {"a": ["\r\n"]}, "resource__content_type": "text/html"},
    ]
    first, *others = (message(number, **changes) for number, changes in enumerate(said))
    home.run([first], "json")
    home.run(others, "json")
    (bundle,) = home.told("bundles")
    assert (bundle["state"], bundle["stored_count"], bundle["recipe_id"]) == ("open", 1, "r")
    ((shown,), letters) = home.told("show", "test-fine"), home.letters()
    ((resource,),) = (shown["resources"],)
    assert [stored["key"] for stored in resource["objects"]] == [
        f"r/first/test-fine/{resource_name(resource['url'])}"
    ]
    assert letters == {}
    # One of these ids stands for something else already.
    log = home.run(
        [
            message(1, resource__url="https://example.com/other"),
            message(9, resource__url="https://x.example/"),
        ],
        "json",
    )
    assert [json.loads(line)["fate"] for line in log.splitlines() if "message failed" in line] == [
        "dead: conflict"
    ]
    (letter,) = home.letters().values()
    assert (letter.reason, "used before" in (letter.detail or "")) == ("conflict", True)
    late = [
        message(10, resource__url="https://late.example/"),
        home.message(id="m11", resource__url="https://late.example/2"),
    ]
    home.run(late, "json")
    (bundle,) = home.told("bundles")
    assert (bundle["state"], bundle["stored_count"]) == ("published", 2)
    assert len(home.told("completions")) == 1


def test_resources_of_one_bundle_in_two_folders_of_a_target_have_one_manifest(home: Home) -> None:
    (home.path / "transload.yaml").write_text(
        "targets: {main: {archive: zip}}\n"
        "routes:\n"
        "  pages: {content_type: text/html, layout: 'pages/{recipe_id}/{bid}/{name}'}\n"
        "  files: {layout: 'files/{bid}/{name}'}\n"
    )
    urls = [f"https://example.com/{n}" for n in range(3)]
    said: list[dict[str, Any]] = [
        {"resource__content_type": "text/html"},
        {"resource__content_type": "text/html", "bundle__recipe_id": "../other"},
        {},
    ]
    bodies = [
        home.message(id=url, resource__url=url, bundle__resources_count=3, **more)
        for url, more in zip(urls, said, strict=True)
    ]
    log = home.run(bodies, "json")
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["bundle complete", "bundle published"]
    ((shown,), (told,)) = home.told("show", "test-fine"), home.told("completions")
    (place,) = shown["targets"]
    assert [each["manifest_key"] for each in told["targets"]] == [place["manifest_key"]]
    manifest = json.loads((home.path / "storage" / place["manifest_key"]).read_bytes())
    assert sorted(each["url"] for each in manifest["resources"]) == urls
    assert {each["key"].partition("/")[0] for each in manifest["resources"]} == {"pages", "files"}
    home.shown("verify", "test-fine")
