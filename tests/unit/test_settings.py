import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.file import FileBackend
from backends.registry import BACKENDS
from handlers.bundling.archive import FORMATS
from handlers.layouts import BundleFacts
from handlers.transforms.max_size import MaxSize
from worker.publishers.embedded import EmbeddedPublisher
from worker.queues.embedded import EmbeddedQueue
from worker.routing import make_handlers
from worker.settings import Settings, SettingsError, json_schema, load_settings
from worker.settings_places import RouteSettings
from worker.settings_reference import reference
from worker.settings_schema import SECTIONS

CANARY = "C4n4ry/s3cret+Key"

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads `text` as the file `t.yaml` in tmp_path/conf, from the working directory tmp_path/cwd."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def load(text: str | bytes | None = None, *, home: Path | None = None, **environ: str) -> Settings:
        file = None
        if text is not None:
            file = tmp_path / "conf" / "t.yaml"
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_settings(file=file, home=home, environ={"HOME": str(tmp_path / "user"), **environ})

    return load


def problems(load: Load, text: str | bytes | None = None, **environ: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(text, **environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [re.sub(r"^\S*/conf/", "", problem) for problem in caught.value.problems]


def problem(load: Load, text: str | bytes | None = None, **environ: Any) -> str:
    (only,) = problems(load, text, **environ)
    return only


def root(settings: Settings, section: str = "targets", name: str = "main") -> Path:
    place: Any = getattr(settings, section)[name]
    assert isinstance(place.options, FileBackend.Options)
    path: Path = place.options.model_dump()["root"]
    return path


# Defaults and precedence


def test_without_anything_everything_lives_in_the_users_home(load: Load, tmp_path: Path) -> None:
    settings = load()
    home = tmp_path / "user" / ".transload"
    assert settings.home == home
    assert settings.queue.type == settings.publisher.type == "embedded"
    assert isinstance(settings.queue.options, EmbeddedQueue.Options)
    assert isinstance(settings.publisher.options, EmbeddedPublisher.Options)
    assert settings.queue.options.model_dump()["path"] == home / "queue.db"
    assert settings.publisher.options.model_dump()["path"] == home / "completions.db"
    assert root(settings, "staging") == home / "staging"
    assert root(settings) == home / "storage"
    assert settings.ledger.path == home / "ledger.db"
    assert settings.routes["default"].targets == ("main",)
    assert (settings.worker.concurrency, settings.worker.drain_timeout) == (64, 25.0)
    assert (settings.admin.host, settings.admin.port) == ("127.0.0.1", 9464)
    assert not (tmp_path / "user").exists()


def test_home_argument_beats_environment_beats_file(load: Load, tmp_path: Path) -> None:
    text = "home: here\n"
    assert load(text).home == tmp_path / "conf" / "here"
    assert load(text, TRANSLOAD_HOME="env").home == tmp_path / "cwd" / "env"
    assert load(text, TRANSLOAD_HOME="env", home=Path("arg")).home == tmp_path / "cwd" / "arg"
    assert load("home: ~/t\n").home == tmp_path / "user" / "t"


def test_environment_wins_over_file_and_makes_sections(load: Load) -> None:
    settings = load(
        "worker: {concurrency: 2, max_attempts: 3}\n",
        TRANSLOAD_WORKER__CONCURRENCY="8",
        TRANSLOAD_RELAY__POLL_INTERVAL="0.25",
        TRANSLOAD_ADMIN__ENABLED="false",
        TRANSLOAD_TARGETS__MAIN__PREFIX="captures",
        TRANSLOAD_QUEUE__QUEUE="12e4",
    )
    assert (settings.worker.concurrency, settings.worker.max_attempts) == (8, 3)
    assert settings.relay.poll_interval == 0.25
    assert settings.admin.enabled is False
    assert settings.targets["main"].prefix == "captures"
    assert settings.queue.options.model_dump()["queue"] == "12e4"


def test_environment_values_may_be_lists_quoted_null_or_empty(load: Load) -> None:
    settings = load(
        "targets: {a: {}, b: {}}\nworker: {concurrency: 3}\n",
        TRANSLOAD_ROUTES__DEFAULT__TARGETS="[b]",
        TRANSLOAD_STAGING__MAIN__PREFIX="'[x]'",
        TRANSLOAD_WORKER__CONCURRENCY="",
        TRANSLOAD_RELAY="null",
    )
    assert settings.routes["default"].targets == ("b",)
    assert settings.staging["main"].prefix == "[x]"
    assert settings.worker.concurrency == 3


def test_the_config_variable_names_the_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "cwd" / "other.yaml").write_text("worker: {concurrency: 5}\n")
    assert load(TRANSLOAD_CONFIG="other.yaml").worker.concurrency == 5
    assert load("worker: {concurrency: 6}\n", TRANSLOAD_CONFIG="other.yaml").worker.concurrency == 6


def test_relative_paths_start_from_the_files_folder(load: Load, tmp_path: Path) -> None:
    settings = load(
        "home: ./h\n"
        "queue: {path: q.db}\n"
        "staging: {main: {root: ./in}}\n"
        "targets: {main: {root: ../out}}\n"
        "ledger: {url: 'sqlite:///l/ledger.db'}\n"
    )
    conf = tmp_path / "conf"
    assert settings.home == conf / "h"
    assert settings.queue.options.model_dump()["path"] == conf / "q.db"
    assert root(settings, "staging") == conf / "in"
    assert root(settings) == tmp_path / "out"
    assert settings.ledger.path == conf / "l" / "ledger.db"


def test_the_ledger_url_survives_odd_characters_in_home(load: Load, tmp_path: Path) -> None:
    home = tmp_path / "a b%20c#d?e@f"
    assert load(home=home).ledger.path == home / "ledger.db"


def test_the_ledger_may_be_on_a_server(load: Load) -> None:
    url = "postgresql://u:p%40@db.example:5433/ledger?sslmode=require"
    settings = load("ledger: {url_env: LEDGER, pooler: true}\n", LEDGER=url)
    assert (settings.ledger.url, settings.ledger.path) == (url, None)
    assert (settings.ledger.pooler, settings.ledger.listen) == (True, True)
    assert "p%40" not in f"{settings!r} {settings.redacted()}"


def test_places_beside_main_do_not_share_its_directory(load: Load) -> None:
    settings = load(
        "targets: {main: {}, cold: {}}\nstaging: {main: {}, web: {}}\nroutes: {default: {targets: [cold]}}\n"
    )
    home = settings.home
    assert root(settings, "targets", "cold") == home / "storage-cold"
    assert root(settings, "staging", "web") == home / "staging-web"


def test_adapter_options_lie_flat_and_become_the_adapters_own(load: Load) -> None:
    settings = load(
        "queue: {type: sqs, queue_url: 'https://sqs.eu-west-2.amazonaws.com/1/q', region: eu-west-2}\n"
        "targets: {main: {backend: s3, bucket: bbb, prefix: /a//b/, part_size: 8388608}}\n"
        "publisher: {type: sqs, queue_url: 'https://sqs.eu-west-2.amazonaws.com/1/c', region: eu-west-2}\n"
    )
    assert settings.queue.options.model_dump()["region"] == "eu-west-2"
    assert settings.targets["main"].options.model_dump()["bucket"] == "bbb"
    assert settings.targets["main"].prefix == "a/b"


def test_settings_are_frozen(load: Load) -> None:
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.worker.concurrency = 1  # type: ignore[misc]  # the test is that it cannot


# References to variables


def test_an_env_key_holds_the_name_of_a_variable_at_any_depth(load: Load) -> None:
    settings = load(
        "home_env: WHERE\n"
        "worker: {concurrency_env: N}\n"
        "targets: {main: {backend: s3, bucket_env: B, access_key_id: a, secret_access_key_env: S}}\n",
        WHERE="/srv/t",
        N="7",
        B="bucket",
        S=CANARY,
    )
    assert settings.home == Path("/srv/t")
    assert settings.worker.concurrency == 7
    options = settings.targets["main"].options.model_dump()
    assert options["bucket"] == "bucket"
    assert options["secret_access_key"].get_secret_value() == CANARY


def test_a_variable_replaces_the_other_spelling_in_the_file(load: Load) -> None:
    assert (
        load("worker: {concurrency_env: N}\n", N="7", TRANSLOAD_WORKER__CONCURRENCY="9").worker.concurrency
        == 9
    )
    assert (
        load("worker: {concurrency: 1}\n", N="7", TRANSLOAD_WORKER__CONCURRENCY_ENV="N").worker.concurrency
        == 7
    )


def test_a_missing_variable_is_one_problem_with_file_key_variable_and_remedy(load: Load) -> None:
    text = "targets:\n  main:\n    backend: s3\n    bucket_env: MY_BUCKET\n"
    expected = "t.yaml:4: targets.main.bucket_env: the environment variable MY_BUCKET is not set; set it, or give bucket itself"
    assert problem(load, text) == expected
    assert problem(load, text, MY_BUCKET="") == expected


def test_a_key_and_its_reference_together_are_refused(load: Load) -> None:
    text = "worker:\n  concurrency: 1\n  concurrency_env: N\n"
    assert problem(load, text, N="2") == (
        "t.yaml:3: worker.concurrency_env: given beside concurrency; keep one of the two"
    )


def test_a_secret_put_where_a_variables_name_belongs_is_not_repeated(load: Load) -> None:
    text = f"targets: {{main: {{backend: s3, bucket: bbb, secret_access_key_env: '{CANARY}'}}}}\n"
    line = problem(load, text)
    assert "secret_access_key_env: must be the name of a set environment variable" in line
    assert CANARY not in line


def test_a_problem_with_a_referenced_value_points_at_the_reference(load: Load) -> None:
    assert problem(load, "worker:\n  concurrency_env: N\n", N="many").startswith(
        "t.yaml:2: worker.concurrency: 'many' "
    )


# What is wrong, where, and what to do


def test_all_problems_come_at_once_each_with_its_place(load: Load) -> None:
    found = problems(
        load,
        "worker:\n"
        "  concurency: 3\n"
        "  max_attempts: 0\n"
        "queue:\n"
        "  type: kafka\n"
        "targets:\n"
        "  main:\n"
        "    backend: s3\n"
        "    prefix: a/../b\n"
        "admin:\n"
        "  host: everywhere\n"
        "colour: red\n",
        TRANSLOAD_RELAY__BATCH="none",
    )
    text = "\n".join(found)
    assert "t.yaml:2: worker.concurency: unknown key; did you mean 'concurrency'?" in text
    assert "t.yaml:3: worker.max_attempts: '0' should be greater than or equal to 1; correct it" in text
    assert "t.yaml:5: queue.type: no queue has that name; there are: embedded, memory, rabbitmq, sqs" in text
    assert "t.yaml:7: targets.main.bucket: is required; add it, or bucket_env with the name" in text
    assert "t.yaml:9: targets.main.prefix: 'a/../b' is refused: a prefix has no '.' or '..' segments" in text
    assert (
        "t.yaml:11: admin.host: 'everywhere' is refused: not an address to listen on; use 127.0.0.1" in text
    )
    assert "t.yaml:12: colour: unknown key; there are: admin, audit, cloudwatch, encryption, home, " in text
    assert "environment TRANSLOAD_RELAY__BATCH: relay.batch: 'none' should be a valid integer" in text
    assert len(found) == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("queue: embedded\n", "t.yaml:1: queue: must be a mapping of keys to values"),
        ("targets: [a]\n", "t.yaml:1: targets: must be a mapping of keys to values"),
        ("targets: {main: x}\n", "t.yaml:1: targets.main: must be a mapping of keys to values"),
        ("targets: {Main: {}}\n", "t.yaml:1: targets.Main: 'Main' "),
        ('home: "a\\0b"\n', "t.yaml:1: home: holds a NUL or text that is not Unicode; remove it"),
        ('targets: {main: {root: "\\uD800"}}\n', "t.yaml:1: targets.main.root: holds a NUL or text that is not"),
        ("home: 3\n", "t.yaml:1: home: must be the path of a directory"),
        ("queue: {typ: sqs}\n", "t.yaml:1: queue.typ: unknown key; did you mean 'type'?"),
        ("targets: {main: {prefx: a}}\n", "t.yaml:1: targets.main.prefx: unknown key; did you mean 'prefix'?"),
        ("targets: {main: {bucket: a}}\n", "t.yaml:1: targets.main.bucket: unknown key; there are: archive, backend, "),
        ("targets: {main: {prefix: 2024}}\n", "t.yaml:1: targets.main.prefix: '2024' should be a valid string; put it"),
        ("targets: {main: {layout: hove}}\n", "t.yaml:1: targets.main.layout: 'hove' is refused: no layout has that name; did you mean 'hive'?"),
        ("staging: {main: {layout: oc}}\n", "t.yaml:1: staging.main.layout: unknown key"),
        ("targets: {main: {backend: s4}}\n", "t.yaml:1: targets.main.backend: no backend has that name; there are: azure, file, gcs, hdfs, http, memory, module, postgres, s3, sftp"),
        ("worker: {retry_base: 9, retry_cap: 3}\n", "t.yaml:1: worker: retry_base is larger than retry_cap"),
        ("worker: {retry_cap: .inf}\n", "t.yaml:1: worker.retry_cap: 'inf' should be"),
        ("worker: {drain_timeout: .nan}\n", "t.yaml:1: worker.drain_timeout: 'nan' should be a finite number"),
        ("routes: {default: {targets: [man]}}\n", "t.yaml:1: routes.default.targets: no target is named 'man'; did you mean 'main'?"),
        ("targets: {a: {}, b: {}}\nroutes: {x: {best_effort: [b, a]}}\n", "t.yaml:2: routes.x: all targets are best effort; a bundle has to wait for one: name it in targets"),
        ("targets: {a: {}, b: {}}\nroutes: {x: {targets: [a], best_effort: [a]}}\n", "t.yaml:2: routes.x.best_effort: also among the route's targets (a); a bundle waits for a target or does not: keep one"),
        ("routes: {x: {recipe: fr}}\n", "t.yaml:1: routes.x.recipe: unknown key; did you mean 'recipe_id'?"),
        ("ledger: {url: 'mysql://u:p@h/d'}\n", "t.yaml:1: ledger.url: 'mysql://**********@h/d' is refused: the ledger cannot be 'mysql'; use sqlite:///"),
        ("ledger: {url: 'postgresql+psycopg://u:p@h/d'}\n", "t.yaml:1: ledger.url: 'postgresql+psycopg://**********@h/d' is refused: the ledger talks to PostgreSQL through asyncpg, not 'psycopg'"),
        ("ledger: {url: 'postgresql://u:p@h'}\n", "t.yaml:1: ledger.url: 'postgresql://**********@h' is refused: the ledger's URL names a host and a database"),
        ("ledger: {url: 'postgresql:///d'}\n", "t.yaml:1: ledger.url: 'postgresql:///d' is refused: the ledger's URL names a host and a database"),
        ("ledger: {url: 'postgresql://h/d?password=p'}\n", "t.yaml:1: ledger.url: 'postgresql://h/d?password=**********' is refused: the ledger's URL has no parameter 'password'"),
        ("ledger: {url: 'sqlite://'}\n", "t.yaml:1: ledger.url: 'sqlite://' is refused: the ledger is one file"),
        ("ledger: {url: 'sqlite:///:memory:'}\n", "t.yaml:1: ledger.url: 'sqlite:///:memory:' is refused: the ledger is one file"),
        ("ledger: {url: 'sqlite:///x.db?mode=ro'}\n", "t.yaml:1: ledger.url: 'sqlite:///x.db?mode=ro' is refused: the ledger is one file"),
        ("ledger: {url: nonsense}\n", "t.yaml:1: ledger.url: 'nonsense' is refused: not a database URL"),
        ("admin: {host: example.org}\n", "t.yaml:1: admin.host: 'example.org' is refused: not an address to listen on"),
        ('admin: {token: "of-many-letters-and-a-newline\\n"}\n', "t.yaml:1: admin.token: no header carries it; use letters"),
        ("admin: {token: of-löttörs-no-header-carries}\n", "t.yaml:1: admin.token: no header carries it; use letters"),
        ("admin: {port: 70000}\n", "t.yaml:1: admin.port: '70000' should be less than or equal to 65535"),
        ("logs: {level: loud}\n", "t.yaml:1: logs.level: 'loud' should be 'debug', "),
        ('targets: {main: {prefix: "a\\nb"}}\n', "t.yaml:1: targets.main.prefix: 'a\\nb' is refused: a prefix has no control"),
    ],
)  # fmt: skip
def test_a_problem_says_what_is_wrong_and_what_to_do(load: Load, text: str, expected: str) -> None:
    assert problem(load, text).startswith(expected)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TRANSLOAD_WROKER__CONCURRENCY", "1", "environment TRANSLOAD_WROKER__CONCURRENCY: wroker: unknown key; did you mean 'worker'?"),
        ("TRANSLOAD_WORKER____X", "1", "environment TRANSLOAD_WORKER____X: not a key path"),
        ("TRANSLOAD_COLOUR", "red", "environment TRANSLOAD_COLOUR: colour: unknown key"),
        ("TRANSLOAD_QUEUE", "sqs", "environment TRANSLOAD_QUEUE: queue: must be a mapping"),
        ("TRANSLOAD_ROUTES__DEFAULT__TARGETS", "[a", "environment TRANSLOAD_ROUTES__DEFAULT__TARGETS: not a YAML list"),
        ("TRANSLOAD_WORKER__CONCURRENCY", "0", "environment TRANSLOAD_WORKER__CONCURRENCY: worker.concurrency: '0' should"),
        ("TRANSLOAD_CONFIG", "/nowhere/t.yaml", "/nowhere/t.yaml: cannot be read (No such file or directory); name an existing file"),
    ],
)  # fmt: skip
def test_a_problem_in_the_environment_names_the_variable(
    load: Load, variable: str, value: str, expected: str
) -> None:
    assert problem(load, **{variable: value}).startswith(expected)


def test_kubernetes_service_variables_are_not_settings(load: Load) -> None:
    load(
        TRANSLOAD_SERVICE_HOST="10.0.0.1",
        TRANSLOAD_SERVICE_PORT_METRICS="9464",
        TRANSLOAD_PORT="tcp://10.0.0.1:9464",
        TRANSLOAD_METRICS_PORT_9464_TCP_ADDR="10.0.0.1",
    )


@pytest.mark.parametrize(
    "text",
    [
        f"targets: {{main: {{backend: s3, bucket: bbb, secret_acess_key: '{CANARY}'}}}}\n",
        f"targets: {{main: {{backend: s3, bucket: bbb, secret_access_key: ['{CANARY}']}}}}\n",
        f"targets: {{main: {{backend: s3, bucket: bbb, secret_access_key: '{CANARY}', nonsense: 1}}}}\n",
        f"targets: {{main: {{backend: s3, secret_access_key: '{CANARY}'}}}}\n",
        f"targets: {{main: '{CANARY}'}}\n",
        f"queue: {{type: '{CANARY}'}}\n",
        f"password: '{CANARY}'\n",
        f"ledger: {{url: 'mysql://u:{CANARY.replace('/', '')}@h/d'}}\n",
        f"ledger: {{url: 'postgresql://u@h/d?password={CANARY.replace('/', '')}'}}\n",
        f"targets: {{main: {{secret_access_key: '{CANARY}\n",
    ],
)
def test_case_99_no_error_repeats_a_secret(load: Load, text: str) -> None:
    shown = "\n".join(problems(load, text))
    assert CANARY not in shown
    assert CANARY.replace("/", "") not in shown


def test_a_secret_of_digits_is_told_to_be_quoted_and_not_repeated(load: Load) -> None:
    line = problem(
        load, "targets: {main: {backend: s3, bucket: bbb, access_key_id: a, secret_access_key: 8675309}}\n"
    )
    assert (
        line
        == "t.yaml:1: targets.main.secret_access_key: the value should be a valid string; put it in quotes"
    )


# YAML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "t.yaml: empty"),
        ("# nothing\n", "t.yaml: empty"),
        ("- a\n", "t.yaml: not a mapping"),
        ("word\n", "t.yaml: not a mapping"),
        ("a: 1\n\tb: 2\n", "t.yaml:2: indented with a tab; use spaces"),
        (b"worker:\n  x: \xff\xfe\n", "t.yaml:2: not UTF-8 (byte 13)"),
        ("home: x\n".encode("utf-16"), "t.yaml:1: not UTF-8"),
        (b"home: a\x00b\n", "t.yaml:1: holds a control character"),
        ("worker: {\n", "t.yaml:2: not YAML ("),
        ("home: a\n---\nhome: b\n", "t.yaml:2: a second YAML document begins here"),
        ("a: &x [1]\nb: *x\n", "t.yaml:1: anchors (&) and aliases (*) are not accepted"),
        ("a: *nothing\n", "t.yaml:1: anchors (&) and aliases (*) are not accepted"),
        ("home: !!python/object/apply:os.system [id]\n", "t.yaml:1: YAML tags (!…) are not accepted"),
        ("home: !mine x\n", "t.yaml:1: YAML tags (!…) are not accepted"),
        ("worker: !!set {a}\n", "t.yaml:1: YAML tags (!…) are not accepted"),
        ("home: " + "[" * 5000 + "\n", "t.yaml:1: nested deeper than 20 levels"),
        (f"worker: {{concurrency: {'9' * 5000}}}\n", "t.yaml:1: a number that is too large or malformed"),
        # Base 60 and 16, where Python has no limit of its own: a megabyte of the first would take a minute.
        (f"worker: {{concurrency: 1{':1' * 40_000}}}\n", "t.yaml:1: a number that is too large or malformed"),
        (f"worker: {{concurrency: 0x{'F' * 20_000}}}\n", "t.yaml:1: a number that is too large or malformed"),
        (f"relay:\n  lease: 1{':1' * 400}.5\n", "t.yaml:2: a number that is too large or malformed"),
        (f"relay:\n  lease: 1{':59' * 30}e+308\n", "t.yaml:2: relay.lease"),
        ('home: "\\UFFFFFFFF"\n', "t.yaml:1: an escape (\\U…) that is no character"),
        ('home: "\\U00110000"\n', "t.yaml:1: an escape (\\U…) that is no character"),
        ("worker:\n  <<: {concurrency: 1}\n", "t.yaml:2: worker: a key must be text (put << in quotes)"),
        ("x: &a {b: 1}\ny:\n  <<: *a\n", "t.yaml:1: anchors (&) and aliases (*) are not accepted"),
        ("".join(f"k{n}: 1\n" for n in range(12_000)), "t.yaml:10000: more than 20000 keys and values"),
        (f"a: [{'1, ' * 30_000}]\n", "t.yaml:1: more than 20000 keys and values"),
        ("a:\n" + "- \n" * 30_000, "t.yaml:19999: more than 20000 keys and values"),
        ("#" * (1 << 20) + "\n", "t.yaml: larger than 1048576 bytes"),
    ],
)
def test_case_80_what_is_not_a_settings_file_is_one_clear_line(
    load: Load, text: str | bytes, expected: str
) -> None:
    assert problem(load, text).startswith(expected)


def test_case_80_an_alias_bomb_is_refused_before_it_grows(load: Load) -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(c + 1)}: &{chr(c + 1)} [{', '.join([f'*{chr(c)}'] * 10)}]\n" for c in range(ord("a"), ord("k"))
    )
    assert "anchors" in problem(load, text)


def test_a_repeated_key_is_refused_with_both_places_beside_other_problems(load: Load) -> None:
    text = "worker:\n  concurrency: 1\n  concurrency: 2\nadmin:\n  port: -1\n"
    first, second = problems(load, text)
    assert first == "t.yaml:3: worker.concurrency: given twice (first at " + first.partition("(first at ")[2]
    assert first.endswith("t.yaml:2); keep one")
    assert second.startswith("t.yaml:5: admin.port: '-1' should be")


def test_keys_are_text(load: Load) -> None:
    assert problem(load, "targets: {yes: {}, main: {}}\n").startswith(
        "t.yaml:1: targets: a key must be text (put yes in quotes)"
    )


def test_a_byte_order_mark_is_harmless(load: Load) -> None:
    assert load(b"\xef\xbb\xbfworker: {concurrency: 4}\n").worker.concurrency == 4


def test_a_problem_stays_on_its_line(load: Load) -> None:
    assert "\n" not in problem(load, '"a\\nb\\e[2J": 1\n')


def test_a_directory_is_no_file(load: Load, tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in problem(load, TRANSLOAD_CONFIG=str(tmp_path))


# Overlaps


@pytest.mark.parametrize(
    "text",
    [
        "staging: {main: {root: /d}}\ntargets: {main: {root: /d}}\n",
        "staging: {main: {root: /d/in}}\ntargets: {main: {root: /d}}\n",
        "staging: {main: {root: /d}}\ntargets: {main: {root: /d/x/../out}}\n",
        "staging: {main: {root: /d, prefix: a}}\ntargets: {main: {root: /d/a/b}}\n",
        "staging: {one: {root: /d}, two: {root: /d/two}}\n",
        "home: /h\ntargets: {main: {root: /h}}\n",
        "staging: {main: {backend: s3, bucket: bbb}}\ntargets: {main: {backend: s3, bucket: bbb, prefix: out}}\n",
        "staging: {main: {backend: s3, bucket: bbb, prefix: a/b}}\ntargets: {main: {backend: s3, bucket: bbb, prefix: a}}\n",
    ],
)
def test_staging_inside_another_place_is_refused(load: Load, text: str) -> None:
    assert "one lies inside the other; give each its own root, bucket or prefix" in problem(load, text)


def test_a_symlink_does_not_hide_an_overlap(load: Load, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = f"staging: {{main: {{root: {tmp_path}/link/x}}}}\ntargets: {{main: {{root: {tmp_path}/real}}}}\n"
    assert problem(load, text).startswith("t.yaml:1: staging.main: overlaps targets.main (used at ")


@pytest.mark.parametrize(
    "text",
    [
        "staging: {main: {root: /d/in}}\ntargets: {main: {root: /d/in-other}}\n",
        "staging: {main: {root: /d, prefix: in}}\ntargets: {main: {root: /d, prefix: out}}\n",
        "staging: {main: {backend: s3, bucket: bbb, prefix: a}}\ntargets: {main: {backend: s3, bucket: bbb, prefix: ab}}\n",
        "staging: {main: {backend: s3, bucket: bbb}}\ntargets: {main: {backend: s3, bucket: ccc}}\n",
        "staging: {main: {backend: memory}}\ntargets: {main: {backend: memory}}\n",
    ],
)
def test_places_side_by_side_are_fine(load: Load, text: str) -> None:
    load(text)


# The seed's variables

SEED_S3: Mapping[str, str] = {
    "OC_STORAGE_TYPE": "s3",
    "OC_S3_BUCKET": "my-data-bucket",
    "OC_S3_PREFIX": "captures/2024/",
    "AWS_REGION": "eu-west-2",
    "OC_SQS_QUEUE_URL": "https://sqs.eu-west-2.amazonaws.com/123456789012/bundle-completions",
}


def test_the_seeds_s3_variables_make_a_target_and_a_publisher(load: Load) -> None:
    settings = load(**SEED_S3, OC_STORAGE_PIPELINE_AWS_PROFILE="prod", OC_STORAGE_USE_UNZIP="false")
    target = settings.targets["main"]
    assert (target.backend, target.layout, target.prefix) == ("s3", "oc", "captures/2024")
    options = target.options.model_dump()
    assert (options["bucket"], options["region"], options["profile"]) == (
        "my-data-bucket",
        "eu-west-2",
        "prod",
    )
    assert options["endpoint_url"] is None
    assert settings.publisher.type == "sqs"
    options = settings.publisher.options.model_dump()
    assert (options["queue_url"], options["endpoint_url"]) == (SEED_S3["OC_SQS_QUEUE_URL"], None)
    assert settings.queue.type == "embedded"


def test_the_seeds_endpoints_are_kept(load: Load) -> None:
    local = {"OC_S3_ENDPOINT_URL": "http://127.0.0.1:4566", "OC_SQS_QUEUE_URL": "http://127.0.0.1:4566/000/q"}
    settings = load(**{**SEED_S3, **local})
    assert settings.targets["main"].options.model_dump()["endpoint_url"] == "http://127.0.0.1:4566"
    assert settings.publisher.options.model_dump()["endpoint_url"] == "http://127.0.0.1:4566"


def test_the_seeds_file_path_starts_from_the_working_directory(load: Load, tmp_path: Path) -> None:
    settings = load(OC_STORAGE_TYPE="file", OC_STORAGE_FILE_PATH="captures")
    assert root(settings) == tmp_path / "cwd" / "captures"
    assert settings.publisher.type == "embedded"


def test_our_variables_win_over_the_seeds_and_a_file_silences_them(load: Load) -> None:
    assert (
        load(**SEED_S3, TRANSLOAD_TARGETS__MAIN__BUCKET="other")
        .targets["main"]
        .options.model_dump()["bucket"]
        == "other"
    )
    assert load("worker: {}\n", **SEED_S3, OC_STORAGE_USE_UNZIP="true").targets["main"].backend == "file"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"OC_SQS_QUEUE_URL": ""}, "environment OC_SQS_QUEUE_URL: not set, and OC_STORAGE_TYPE=s3 needs it"),
        ({"OC_S3_BUCKET": ""}, "environment OC_S3_BUCKET: not set, and OC_STORAGE_TYPE=s3 needs it"),
        ({"OC_STORAGE_TYPE": "gcs"}, "environment OC_STORAGE_TYPE: names no storage type; set it to s3 or file"),
        ({"OC_STORAGE_TYPE": ""}, "environment OC_STORAGE_TYPE: not set beside OC_S3_BUCKET"),
        ({"OC_S3_PREFIX": "../x"}, "environment OC_S3_PREFIX: targets.main.prefix: '../x' is refused"),
    ],
)  # fmt: skip
def test_the_seeds_variables_are_checked_too(load: Load, changes: dict[str, str], expected: str) -> None:
    assert problem(load, **{**SEED_S3, **changes}).startswith(expected)


# Transforms


def test_a_routes_transforms_are_names_or_names_with_options(load: Load) -> None:
    text = """
routes:
  default:
    transforms: [gunzip, compress: {codec: gzip}, unzip: ]
    limits: {nesting: 5}
  other: {transforms: unzip}
"""
    settings = load(text)
    steps = settings.routes["default"].transforms
    assert [(step.name, step.options.model_dump().get("codec")) for step in steps] == [
        ("gunzip", None),
        ("compress", "gzip"),
        ("unzip", None),
    ]
    assert settings.routes["default"].limits.nesting == 5
    assert [step.name for step in settings.routes["other"].transforms] == ["unzip"]
    shown = settings.redacted()["routes"]["default"]["transforms"]
    assert shown[:2] == ["gunzip", {"compress": {"codec": "gzip", "level": None}}]


def test_the_seeds_variable_has_bundles_archived(load: Load) -> None:
    assert load(OC_STORAGE_USE_BUNDLER="true").targets["main"].archive == "zip"
    assert load(**SEED_S3, OC_STORAGE_USE_BUNDLER="1").targets["main"].archive == "zip"
    assert load(**SEED_S3, OC_STORAGE_USE_BUNDLER="false").targets["main"].archive is None


@pytest.mark.parametrize("format_", FORMATS.names())
def test_a_target_has_its_bundles_archived(load: Load, format_: str) -> None:
    settings = load(f"targets: {{main: {{archive: {format_}}}}}\n")
    assert settings.targets["main"].archive == format_
    assert settings.redacted()["targets"]["main"]["archive"] == format_
    (route,) = (make_handlers(settings).resource_fetched.routes).routes
    (place,) = route.bundle_targets(BundleFacts("test-a"))
    assert (place.archive, place.archive_key) == (format_, f"bundle_test-a/bundle.{format_}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{main: {archive: zip, layout: oc-v1}}", "no document of oc-v1 lists an archive"),
        ("{main: {archive: rar}}", "'rar' should be 'zip', 'tar.zst' or 'tar.gz'"),
        ("{main: {backend: http, base_url: 'http://h/', reads: false, archive: zip}}", "'http' cannot read it back"),
        ("{main: {backend: http, base_url: 'http://h/', max_connections: 7, archive: zip}}", "set max_connections to 8 or more"),
        ("{main: {backend: hdfs, url: 'http://h:9870', root: /r, max_connections: 1, archive: zip}}", "set max_connections to 8 or more"),
    ],
)  # fmt: skip
def test_an_archive_that_could_not_be_written_is_refused(load: Load, text: str, expected: str) -> None:
    told = problems(load, f"targets: {text}\n")
    assert [line for line in told if line.startswith("t.yaml:1: targets.main.archive: ") and expected in line]


def test_an_archive_whose_package_is_missing_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "handlers.bundling.tar_zstd", raising=False)
    for package in ("backports", "compression"):
        monkeypatch.setitem(sys.modules, package, None)
    told = problem(load, "targets: {main: {archive: tar.zst}}\n")
    assert told.startswith("t.yaml:1: targets.main.archive: archive format 'tar.zst' needs the package")
    assert "pip install 'transload[transforms]'" in told


def test_the_seeds_variable_makes_a_route_unzip(load: Load) -> None:
    route = load(OC_STORAGE_USE_UNZIP="true").routes["default"]
    assert [step.name for step in route.transforms] == ["gunzip", "unzip"]
    assert load(OC_STORAGE_USE_UNZIP="false").routes["default"].transforms == ()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("gunzp", "transforms.0: no transform has that name; did you mean 'gunzip'?"),
        ("{compress: {codc: x}}", "transforms.0.compress.codc: unknown key; did you mean 'codec'?"),
        ("3", "transforms.0: must be a transform's name, or one name with its options"),
        ("{gunzip: , unzip: }", "transforms.0: must be a transform's name, or one name with its options"),
        ("{unzip: 4}", "transforms.0.unzip: must be a mapping of options"),
        ("encrypt", "transforms: encrypt needs keys; add the section encryption with keys and primary"),
    ],
)
def test_a_wrong_transform_is_told_with_its_place(load: Load, step: str, expected: str) -> None:
    assert f"routes.default.{expected}" in problem(load, f"routes: {{default: {{transforms: [{step}]}}}}")


def test_a_routes_max_size_is_a_number_or_says_what_becomes_of_more(load: Load) -> None:
    text = "routes: {a: {max_size: 1_000}, b: {max_size: {bytes: 5, over: split}}, c: {}}"
    routes = load(text).routes
    assert [route.max_size for route in routes.values()] == [
        MaxSize(bytes=1000),
        MaxSize(bytes=5, over="split"),
        None,
    ]
    assert load(TRANSLOAD_ROUTES__DEFAULT__MAX_SIZE="12").routes["default"].max_size == MaxSize(bytes=12)
    shown = load(text).redacted()["routes"]
    assert shown["a"]["max_size"] == {"bytes": 1000, "over": "reject"}
    schema = RouteSettings.model_json_schema()["properties"]["max_size"]
    assert {"type": "integer", "minimum": 1} in schema["anyOf"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0", "max_size.bytes: '0' should be greater than or equal to 1"),
        ("true and more", "max_size.bytes: 'true and more' should be a valid integer"),
        ("{over: split}", "max_size.bytes: is required"),
        ("{bytes: 5, over: cut}", "max_size.over: 'cut' should be 'reject', 'compress' or 'split'"),
        ("{bytes: 5, ovr: cut}", "max_size.ovr: unknown key"),
    ],
)
def test_a_wrong_max_size_is_told_with_its_place(load: Load, given: str, expected: str) -> None:
    assert f"routes.default.{expected}" in problem(load, f"routes: {{default: {{max_size: {given}}}}}")


def test_transforms_that_are_no_list_are_refused(load: Load) -> None:
    text = "routes: {default: {transforms: {unzip: {}}}}"
    assert "routes.default.transforms: must be a list of transforms; write [gunzip, unzip]" in problem(
        load, text
    )


def test_keys_lie_beside_the_file_and_are_not_shown(load: Load, tmp_path: Path) -> None:
    text = """
encryption:
  primary: new
  keys:
    new: {key_file: new.key}
    old: {key_env: OLD}
"""
    settings = load(text, OLD="ab" * 32)
    assert settings.encryption is not None
    assert settings.encryption.keys["new"].key_file == tmp_path / "conf" / "new.key"
    assert "ab" * 32 not in json.dumps(settings.redacted(), default=str)
    assert "no such id" in problem(load, text.replace("primary: new", "primary: gone"), OLD="ab" * 32)


# Shown to people


def test_redacted_shows_everything_but_secrets_in_the_shape_of_the_file(load: Load, tmp_path: Path) -> None:
    settings = load(
        "home: h\n"
        "queue:\n"
        "  type: sqs\n"
        "  queue_url: https://sqs.eu-west-2.amazonaws.com/1/q\n"
        f"  endpoint_url: http://user:{CANARY.replace('/', '')}@127.0.0.1:4566\n"
        "targets: {main: {backend: s3, bucket: bbb, access_key_id: AKIA, secret_access_key_env: S}}\n",
        S=CANARY,
    )
    shown = settings.redacted()
    text = yaml.safe_dump(shown)
    assert CANARY not in text
    assert CANARY.replace("/", "") not in text
    assert shown["home"] == str(tmp_path / "conf" / "h")
    assert shown["queue"]["endpoint_url"] == "http://**********@127.0.0.1:4566"
    assert shown["targets"]["main"]["bucket"] == "bbb"
    assert shown["targets"]["main"]["secret_access_key"] == "**********"
    assert shown["routes"]["default"]["targets"] == ["main"]
    assert "options" not in text
    assert CANARY not in repr(settings)


def test_what_is_shown_can_be_loaded_again(load: Load) -> None:
    settings = load(
        "targets: {main: {backend: file, prefix: a}, old: {}}\nroutes: {default: {targets: [main]}}\nqueue: {type: memory, name: n}\n"
    )
    assert load(yaml.safe_dump(settings.redacted())) == settings


def test_the_schema_knows_every_adapter_with_its_options() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == {*SECTIONS, "home_env"}
    variants = {
        v["properties"]["backend"]["const"]: v
        for v in schema["properties"]["targets"]["additionalProperties"]["oneOf"]
    }
    assert set(variants) == set(BACKENDS.entries)
    assert all(variant["additionalProperties"] is False for variant in variants.values())
    assert {"bucket", "bucket_env", "prefix", "layout", "backend"} <= set(variants["s3"]["properties"])
    ways = ("bucket", "bucket_env", "bucket_file", "bucket_secret")
    assert {"anyOf": [{"required": [way]} for way in ways]} in variants["s3"]["allOf"]
    assert "private_key_file_secret" not in variants["sftp"]["properties"]
    assert "endpoint_url_secret" not in schema["properties"]["secrets"]["properties"]
    assert "allOf" not in variants["file"]
    assert "required" not in schema["properties"]["ledger"]
    assert {v["properties"]["type"]["const"] for v in schema["properties"]["queue"]["oneOf"]} == {
        "embedded",
        "memory",
        "rabbitmq",
        "sqs",
    }
    references = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))
    assert references <= set(schema["$defs"])


def test_the_reference_in_the_docs_is_the_generated_one() -> None:
    document = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert document.read_text(encoding="utf-8") == reference(), (
        "run: python -m worker.settings_reference > docs/configuration.md"
    )


def test_every_key_in_the_reference_has_a_meaning() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert [row[0] for row in rows if not row[-1].removesuffix(" |").strip()] == []


def test_the_process_environment_is_not_read(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TRANSLOAD_WORKER__CONCURRENCY", "99")
    monkeypatch.setitem(os.environ, "OC_STORAGE_TYPE", "s3")
    assert load().worker.concurrency != 99
