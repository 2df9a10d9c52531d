"""Every durable side effect lies between two failpoints, and the failpoints are named as agreed."""

import re
from collections import Counter
from fnmatch import fnmatchcase

import pytest

from tests.support.failpoints import Effect, Site, known, read, sources

FORM = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+\.(before|after)")

UNMARKED = {
    ("backends/file_tree.py", "Tree.create", "os.open(O_CREAT)"): "its caller in file_transfer.py is marked",
    (
        "backends/file_tree.py",
        "Tree.probe",
        "os.unlink",
    ): "the probe's own files; a sweep takes what a kill leaves",
    (
        "worker/ledger/*",
        "*",
        "*engine.begin",
    ): "sql.py and group_commit.py mark each transaction, by what it is for",
    (
        "handlers/transforms/spool.py",
        "Spool.append",
        "*os.write",
    ): "a file without a name: gone with the process",
    ("worker/bootstrap.py", "make_pipeline", "spool.mkdir"): "an empty directory, made again each time",
    ("worker/ledger/*", "_make_file", "*"): "an empty file in a directory made again each time",
    ("worker/queues/embedded.py", "EmbeddedQueue._run", "*database.run"): "its callers are marked",
    (
        "worker/storage/announcing.py",
        "_AfterHooks._publish",
        "*publisher.publish",
    ): "called where the relay publishes, which is marked",
    ("worker/sqlite.py", "_open", "*.mkdir"): "an empty directory, made again each time",
}
"""File, function and call of what deliberately has no failpoints, and why. Patterns of fnmatch."""


def sites() -> list[Site]:
    return [site for source in sources() for site in source.sites]


def effects() -> list[Effect]:
    return [effect for source in sources() for effect in source.effects]


def unpaired(sites: list[Site]) -> set[str]:
    """Names whose partner is missing, comes first, or lies in another function."""
    where = {site.name: site for site in sites}
    wrong = set()
    for name, site in where.items():
        stem, _, moment = name.rpartition(".")
        other = where.get(f"{stem}.{'after' if moment == 'before' else 'before'}")
        if (
            other is None
            or (other.path, other.function) != (site.path, site.function)
            or (other.line > site.line) is not (moment == "before")
        ):
            wrong.add(name)
    return wrong


def excuse(effect: Effect) -> tuple[str, str, str] | None:
    facts = (effect.path, effect.function, effect.call)
    matching = (key for key in UNMARKED if all(map(fnmatchcase, facts, key)))
    return next(matching, None)


def test_every_name_is_a_literal_of_the_agreed_form() -> None:
    assert [site for site in sites() if not FORM.fullmatch(site.name)] == []


def test_every_name_is_one_place() -> None:
    assert [name for name, places in Counter(site.name for site in sites()).items() if places > 1] == []


def test_every_before_has_its_after_in_the_same_function() -> None:
    assert unpaired(sites()) == set()


def test_no_durable_side_effect_is_without_failpoints() -> None:
    gaps = [effect for effect in effects() if not effect.marked and excuse(effect) is None]
    assert gaps == [], "put failpoints around these, or say in UNMARKED why they need none"


def test_no_excuse_has_outlived_its_reason() -> None:
    used = {excuse(effect) for effect in effects() if not effect.marked}
    assert set(UNMARKED) - used == set()


def test_every_adapter_with_effects_is_known() -> None:
    names = known()
    assert len(names) > 40
    assert list(names) == sorted(names)
    rooms = {name.partition(".")[0] for name in names}
    assert rooms >= {"file", "s3", "sqlite", "embedded_queue", "embedded_publisher", "sqs_publisher"}


MARKED = """
def write(self):
    failpoint("x.sync.before")
    os.fsync(self._file)
    failpoint("x.sync.after")
"""


@pytest.mark.parametrize(
    "call",
    [
        "os.fsync(file)",
        "os.link(a, b)",
        "os.open(name, os.O_CREAT | os.O_EXCL)",
        "os.open(name, _CREATE, 0o666)",
        "path.touch()",
        "await obstore.put_async(store, key, body)",
        "await self._client.complete_multipart_upload(**where)",
        "await self._call('delete_message_batch', url, Entries=entries)",
        "await exchange.publish(message, routing_key='q')",
        "await channel.basic_ack(tag)",
        "conn.commit()",
        "connection.execute('COMMIT')",
        "await self._database.write(work)",
    ],
)
def test_the_search_finds_each_kind_of_gap(call: str) -> None:
    code = f"async def f(self):\n    {call}\n"
    (gap,) = read(code).effects
    assert not gap.marked
    whole = f"async def f(self):\n    failpoint('x.y.before')\n    {call}\n    failpoint('x.y.after')\n"
    (effect,) = read(whole).effects
    assert effect.marked


@pytest.mark.parametrize(
    "code",
    [
        MARKED.replace('failpoint("x.sync.before")', "pass"),
        MARKED.replace('failpoint("x.sync.after")', "pass"),
        MARKED.replace("x.sync.after", "x.link.after"),
        MARKED.replace("    os.fsync(self._file)\n", "") + "    os.fsync(self._file)\n",
        "failpoint('x.y.before')\ndef f():\n    os.fsync(1)\nfailpoint('x.y.after')\n",
        "def f():\n    def g():\n        failpoint('x.y.before')\n    os.fsync(1)\n    failpoint('x.y.after')\n",
    ],
    ids=["no before", "no after", "another name", "too late", "of the module", "in a function inside"],
)
def test_the_search_is_not_fooled(code: str) -> None:
    assert [effect.marked for effect in read(code).effects] == [False]


@pytest.mark.parametrize(
    "code",
    [
        MARKED,
        "def f():\n    def g():\n        os.fsync(1)\n    failpoint('x.y.before')\n    g()\n    failpoint('x.y.after')\n",
    ],
    ids=["around the call", "around the use, not the definition"],
)
def test_what_lies_between_a_pair_is_no_gap(code: str) -> None:
    effects = read(code).effects
    assert [effect.marked for effect in effects] == [code is MARKED]


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    failpoint('x.y.before')",
        "def f():\n    failpoint('x.y.after')\n    failpoint('x.y.before')",
        "def f():\n    failpoint('x.y.before')\ndef g():\n    failpoint('x.y.after')",
    ],
    ids=["alone", "the wrong way round", "apart"],
)
def test_the_search_finds_names_without_partner(code: str) -> None:
    assert unpaired(list(read(code).sites))


def test_a_computed_name_is_no_name() -> None:
    (site,) = read("def f(self):\n    failpoint(f'{self.name}.y.before')").sites
    assert not FORM.fullmatch(site.name)
