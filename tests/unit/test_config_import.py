"""Other tools' storage configurations become settings that hold; what cannot be taken over is said, with its line."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from worker.cli import app
from worker.config_import import convert
from worker.settings import Settings, SettingsError, load_settings

Import = Callable[..., tuple[Settings, str]]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """The other tool's text -> the settings that ours makes of it, and ours."""

    def run(text: str, **environ: str) -> tuple[Settings, str]:
        (tmp_path / "config.yml").write_text(text, encoding="utf-8")
        ours = convert(tmp_path / "config.yml")
        (tmp_path / "ours.yaml").write_text(ours, encoding="utf-8")
        return load_settings(file=tmp_path / "ours.yaml", home=tmp_path / "home", environ=environ), ours

    return run


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[str], list[str]]:
    def run(text: str) -> list[str]:
        (tmp_path / "config.yml").write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError) as error:
            convert(tmp_path / "config.yml")
        return [problem.replace(f"{tmp_path}/", "") for problem in error.value.problems]

    return run


def options(settings: Settings, target: str) -> Mapping[str, Any]:
    return {
        key: value.get_secret_value() if hasattr(value, "get_secret_value") else value
        for key, value in settings.targets[target].options
    }


VCON = """\
storages:
  my_storage:
    module: storage.my_storage
    options:
      path: /data/custom_vcons
      file_extension: .vcon.json
  Own Thing:
    module: storage.own
    options: {max_size: 5000, api_key: canary-1, where: {url: "https://me:canary-2@host/", depth: 2}}
chains:
  my_chain:
    links:
      - transcribe
    storages:
      - my_storage
      - Own Thing
    ingress_lists:
      - default
      - "a*[b]"
    enabled: 1
  other:
    storages: my_storage
    ingress_lists: default
  paused: {storages: [my_storage], enabled: 0}
  nowhere: {links: [tag], ingress_lists: [x]}
"""


def test_vcon_storages_and_chains_become_targets_and_routes(imported: Import) -> None:
    secrets = {"TARGET_OWN_THING_API_KEY": "k", "TARGET_OWN_THING_WHERE_URL": "u"}
    settings, ours = imported(VCON, **secrets)
    assert list(settings.targets) == ["my_storage", "own-thing"]
    assert settings.targets["my_storage"].backend == "file"
    assert options(settings, "my_storage")["root"] == Path("/data/custom_vcons")
    own = options(settings, "own-thing")
    assert (settings.targets["own-thing"].backend, own["module"], own["max_size"]) == (
        "module",
        "storage.own",
        5000,
    )
    assert own["options"] == {"max_size": 5000, "api_key": "k", "where": {"url": "u", "depth": 2}}
    chain = settings.routes["my_chain"]
    assert (chain.targets, chain.queue, chain.enabled) == (
        ("my_storage", "own-thing"),
        ("default", "a[*][[]b]"),
        True,
    )
    assert (settings.routes["paused"].enabled, settings.routes["paused"].queue) == (False, ())
    assert list(settings.routes) == ["my_chain", "other", "paused"]
    assert "canary" not in ours
    for said in (
        "config.yml:6 storages.my_storage.options.file_extension: names keep the extension",
        "config.yml:12 chains.my_chain.links: transcribe: links have no counterpart",
        "the first that matches counts: my_chain gets there before this one",
        "config.yml:25 chains.nowhere.storages: the chain stores nothing",
    ):
        assert said in unwrapped(ours)


def unwrapped(ours: str) -> str:
    return " ".join(line.strip().lstrip("# ") for line in ours.splitlines())


def test_the_vcon_guides_s3_example(imported: Import) -> None:
    settings, _ = imported(
        "storages:\n  s:\n    module: storage.cloud_storage\n    options: {bucket: calls, prefix: p, region: eu-west-2, "
        "access_key: a, secret_key: s, endpoint_url: 'http://127.0.0.1:4566'}\n",
        TARGET_S_ACCESS_KEY_ID="AK",
        TARGET_S_SECRET_ACCESS_KEY="SK",
    )
    found = options(settings, "s")
    assert settings.targets["s"].prefix == "p"
    assert {
        key: found[key] for key in ("bucket", "region", "access_key_id", "secret_access_key", "endpoint_url")
    } == {
        "bucket": "calls",
        "region": "eu-west-2",
        "access_key_id": "AK",
        "secret_access_key": "SK",
        "endpoint_url": "http://127.0.0.1:4566",
    }
    assert settings.routes["default"].targets == ("s",)


def test_the_vcon_guides_defaults_hold_under_its_options(imported: Import) -> None:
    settings, _ = imported(
        "storages:\n  s: {module: storage.cloud_storage, options: {access_key: '', endpoint_url: null}}\n"
        "  f: {module: storage.my_storage}\n"
    )
    assert (options(settings, "s")["bucket"], options(settings, "s")["region"]) == ("vcons", "us-east-1")
    assert options(settings, "f")["root"] == Path("/data/vcons")


def test_the_vcon_guides_database_example(imported: Import) -> None:
    settings, _ = imported(
        "storages: {db: {module: storage.my_database, options: {host: h, port: 5433, database: d, user: u, password: x}}}\n",
        TARGET_DB_PASSWORD="pw",
    )
    found = options(settings, "db")
    assert settings.targets["db"].backend == "postgres"
    assert [found[key] for key in ("host", "port", "database", "user", "password", "create_tables")] == [
        *("h", 5433, "d", "u", "pw"),
        True,
    ]


def test_the_vcon_guides_api_example(imported: Import) -> None:
    settings, _ = imported(
        "storages: {api: {module: storage.api_storage, options: {base_url: 'https://a.example', api_key_env: KEY, timeout: 12}}}\n",
        KEY="bearer",
    )
    found, retry = options(settings, "api"), settings.targets["api"].retry
    assert (settings.targets["api"].backend, found["base_url"]) == ("http", "https://a.example")
    assert (found["token"], found["total_timeout"], found["path"]) == ("bearer", 12, "vcons/{key}")
    assert retry is not None
    assert (retry.attempts, retry.base, retry.cap) == (3, 1, 10)


S3_CONNECTION = """\
  s3_connection:
    endpoint_url_env: BRONZE_S3_ENDPOINT
    access_key_env: BRONZE_S3_ACCESS_KEY
    secret_key_env: BRONZE_S3_SECRET_KEY
"""
S3_VARIABLES = {
    "BRONZE_S3_ENDPOINT": "http://127.0.0.1:9000",
    "BRONZE_S3_ACCESS_KEY": "AK",
    "BRONZE_S3_SECRET_KEY": "SK",
}


@pytest.mark.parametrize(
    "choice", ['    storage_backend: "s3"\n', "    s3_enabled: true\n", "    storage_enabled: true\n"]
)
def test_medallion_s3(imported: Import, choice: str) -> None:
    text = f'platform:\n  bronze:\n{choice}    s3_bucket: "analytics-bronze"\n    s3_prefix: "bronze"\n'
    settings, _ = imported(text + S3_CONNECTION, **S3_VARIABLES)
    target, found = settings.targets["bronze"], options(settings, "bronze")
    assert (target.backend, target.prefix, target.layout) == ("s3", "bronze", "hive")
    assert [found[key] for key in ("bucket", "endpoint_url", "access_key_id", "secret_access_key")] == [
        *("analytics-bronze", "http://127.0.0.1:9000", "AK", "SK")
    ]


AZURE = """\
platform:
  bronze:
    storage_backend: "azure"
    azure_storage_account: "myaccount"
    azure_container: "bronze"
    azure_prefix: "bronze"
"""


def test_medallion_azure_by_connection_string(imported: Import) -> None:
    text = AZURE + "  azure_connection:\n    connection_string_env: AZURE_STORAGE_CONNECTION_STRING\n"
    value = (
        "DefaultEndpointsProtocol=https;AccountName=myaccount;AccountKey=a2V5;EndpointSuffix=core.windows.net"
    )
    settings, _ = imported(text, AZURE_STORAGE_CONNECTION_STRING=value)
    target, found = settings.targets["bronze"], options(settings, "bronze")
    assert (target.backend, target.prefix, found["container"]) == ("azure", "bronze", "bronze")
    assert (found["connection_string"], found["account"]) == (value, None)


@pytest.mark.parametrize(
    ("connection", "ours"),
    [
        ({"sas_token_env": "V"}, {"sas_token": "held"}),
        ({"account_key_env": "V"}, {"account_key": "held"}),
        (
            {"tenant_id": "t", "client_id": "c", "client_secret_env": "V"},
            {"tenant_id": "t", "client_id": "c", "client_secret": "held"},
        ),
        ({}, {}),
    ],
)
def test_medallion_azure_by_other_credentials(
    imported: Import, connection: dict[str, str], ours: dict[str, str]
) -> None:
    settings, _ = imported(f"{AZURE}  azure_connection: {json.dumps(connection)}\n", V="held")
    found = options(settings, "bronze")
    assert {key: found[key] for key in (*ours, "account")} == {**ours, "account": "myaccount"}


def test_medallion_local(imported: Import) -> None:
    settings, _ = imported('platform:\n  bronze: {storage_backend: "local", local_path: "/data/bronze"}\n')
    assert (settings.targets["bronze"].backend, options(settings, "bronze")["root"]) == (
        "file",
        Path("/data/bronze"),
    )


def test_medallion_storage_may_be_off(imported: Import) -> None:
    settings, ours = imported(
        "platform: {bronze: {s3_bucket: bkt, local_path: /x, storage_enabled: false}}\n"
    )
    assert settings.routes["bronze"].enabled is False
    assert "Left out, because storage_backend is s3: local_path." in ours


def test_medallion_custom_is_code(refused: Callable[[str], list[str]]) -> None:
    (problem,) = refused('platform:\n  bronze:\n    storage_backend: "my_storage"\n')
    assert problem.startswith(
        "config.yml:3: platform.bronze.storage_backend: 'my_storage' is a backend of your own"
    )
    assert "docs/extending.md" in problem


FLUX_LOCAL = """\
storage:
  backend: "local"
  base_dir: "/srv/lake/"

  paths:
    raw_dir: "ingested"
    active_subdir: "streaming"
    ready_subdir: "completed"
    processing_subdir: "transforming"
    processed_dir: "curated"
"""


def test_fluxforge_local(imported: Import) -> None:
    settings, ours = imported(FLUX_LOCAL + "etl: {delete_after_processing: true}\n")
    assert settings.staging["main"].options.model_dump()["root"] == Path("/srv/lake/ingested/completed")
    assert settings.staging["main"].delete_published is True
    assert options(settings, "main")["root"] == Path("/srv/lake/curated")
    assert settings.targets["main"].layout == "{recipe_id}/{meta[channel]}/{bid}.{name}"
    assert "config.yml:7 storage.paths.active_subdir: a payload appears in staging when it is whole" in ours
    assert (
        "config.yml:9 storage.paths.processing_subdir: what is in work is known to queue and ledger" in ours
    )


def test_fluxforge_s3(imported: Import) -> None:
    settings, _ = imported("""\
storage:
  backend: "s3"
  base_dir: "my-datalake"
  paths: {raw_dir: raw, ready_subdir: ready, processed_dir: processed}
  s3:
    bucket: "my-datalake"
    region: "us-east-1"
    aws_access_key_id: null
    aws_secret_access_key: null
""")
    staging, target = settings.staging["main"], settings.targets["main"]
    assert (staging.backend, staging.prefix, target.backend, target.prefix) == (
        "s3",
        "raw/ready",
        "s3",
        "processed",
    )
    for place in (staging, target):
        found = place.options.model_dump()
        assert (found["bucket"], found["region"], found["access_key_id"]) == (
            "my-datalake",
            "us-east-1",
            None,
        )


def test_fluxforge_s3_with_keys(imported: Import) -> None:
    text = (
        "storage: {backend: s3, base_dir: lake, s3: {aws_access_key_id: AK, aws_secret_access_key: canary}}\n"
    )
    variables = {
        f"TARGET_{place}_{key}": key
        for place in ("MAIN", "STAGING_MAIN")
        for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    }
    settings, ours = imported(text, **variables)
    assert options(settings, "main")["secret_access_key"] == "SECRET_ACCESS_KEY"
    assert "canary" not in ours


HYBRID = """\
ingestion:
  storage:
    backend: "local"
    base_dir: "F:/"
    paths: {raw_dir: "raw", active_subdir: "active", ready_subdir: "ready"}
etl:
  storage_input:
    backend: "local"
    base_dir: "F:/"
    paths: {raw_dir: "raw", ready_subdir: "ready"}
  storage_output:
    backend: "s3"
    base_dir: "my-datalake"
    paths: {processed_dir: "processed"}
    s3: {bucket: "my-datalake", region: "us-east-1"}
"""


def test_fluxforge_hybrid_reads_here_and_writes_there(imported: Import, tmp_path: Path) -> None:
    settings, ours = imported(HYBRID)
    assert list(settings.staging) == ["main"]
    assert settings.staging["main"].options.model_dump()["root"] == tmp_path / "F:/raw/ready"
    assert "F:/ is a drive of Windows; name a directory of this machine" in unwrapped(ours)
    assert (settings.targets["main"].backend, settings.targets["main"].prefix) == ("s3", "processed")


def test_fluxforge_may_fetch_and_read_in_two_places(imported: Import) -> None:
    settings, _ = imported(HYBRID.replace('base_dir: "F:/"', 'base_dir: "/one"', 1))
    roots = [place.options.model_dump()["root"] for place in settings.staging.values()]
    assert [str(root).rpartition("/raw")[0].rpartition("/")[2] for root in roots] == ["one", "F:"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("worker: {}\n", ["config.yml: no shape that can be imported"]),
        ("storages: {}\nplatform: {}\n", ["config.yml: several shapes at once"]),
        ("chains: {}\n", ["config.yml: storages: names no storage"]),
        ("storages:\n  a:\n    modul: x\n", ["config.yml:3: storages.a.modul: unknown to the importer; did you mean 'module'?", "config.yml:2: storages.a.module: is missing"]),
        ("storages: {a: {module: m}}\nlinx: 1\n", ["config.yml:2: linx: unknown to the importer; did you mean 'links'?"]),
        ("storages: {a: {module: m}}\nchains:\n  c:\n    storages: [b]\n    timeout: 4\n", ["config.yml:4: chains.c.storages: no storage is named 'b'; there are: a", "config.yml:5: chains.c.timeout: unknown to the importer"]),
        ("storages: {a: {module: m}}\nchains: {c: {storages: [a], enabled: 2}}\n", ["config.yml:2: chains.c.enabled: must be true or false, or 1 or 0"]),
        ("storages: {a: {module: m}}\nchains: {c: {storages: [a], enabled: []}}\n", ["config.yml:2: chains.c.enabled: must be true or false, or 1 or 0"]),
        ("storages: {a: {module: m}}\nchains: {c: {storages: {x: 1}}}\n", ["config.yml:2: chains.c.storages: must be a list of names"]),
        ("storages: {a: {module: m, options: {hosts: [{password: canary}]}}}\n", ["config.yml:1: storages.a.options.hosts: holds a secret inside a list"]),
        ("storages: {a: {module: storage.api_storage, options: {base_url: 'https://u:canary@h'}}}\n", ["config.yml:1: storages.a.options.base_url: holds a password"]),
        ("platform: {bronze: {}}\n", ["config.yml:1: platform.bronze.s3_bucket: is missing"]),
        ("platform:\n  bronze:\n    s3_bucket: b\n    s3_buckt: c\n", ["config.yml:4: platform.bronze.s3_buckt: unknown to the importer; did you mean 's3_bucket'?"]),
        ("platform: {bronze: {storage_backend: azure, azure_container: ccc}}\n", ["config.yml:1: platform.bronze.azure_storage_account: is missing"]),
        ("platform: {bronze: {s3_bucket: b}}\nsource: {}\n", ["config.yml:2: source: unknown to the importer"]),
        ("storage: {base_dir: /x, backend: gcs}\n", ["config.yml:1: storage.backend: 'gcs' is none; it is local or s3"]),
        ("storage: {backend: s3, base_dir: one, s3: {bucket: two}}\n", ["config.yml:1: storage.s3.bucket: is not base_dir ('one')"]),
        ("storage: {backend: local}\n", ["config.yml:1: storage.base_dir: is missing"]),
        ("storage:\n  base_dir: /x\n  paths:\n    raw: x\n", ["config.yml:4: storage.paths.raw: unknown to the importer; did you mean 'raw_dir'?"]),
        ("ingestion: {output_dir: x}\nstorage: {base_dir: /x}\n", ["config.yml:1: ingestion.output_dir: is older than the unified storage"]),
        ("etl: {input_dir: a, output_dir: b, processing_dir: c}\nstorage: {base_dir: /x}\n", [f"config.yml:1: etl.{key}: is older" for key in ("input_dir", "output_dir", "processing_dir")]),
        ("storage: {base_dir: /x}\nstorage: {base_dir: /y}\n", ["config.yml:2: storage: given twice"]),
        ("storage: &a {base_dir: /x}\n", ["config.yml:1: anchors (&) and aliases (*) are not accepted"]),
        ("storage: x\n", ["config.yml:1: storage: must be a mapping"]),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_line(
    refused: Callable[[str], list[str]], text: str, expected: list[str]
) -> None:
    problems = refused(text)
    for said in expected:
        assert any(problem.startswith(said) for problem in problems), problems
    assert "canary" not in str(problems)


@pytest.mark.parametrize(
    "name", ["a\n  injected: {backend: memory}\n  #", "a: b", "#", "'", "日本", "X" * 200]
)
def test_names_of_the_other_file_make_no_settings(imported: Import, name: str) -> None:
    text = {
        "storages": {name: {"module": "m"}},
        "chains": {name: {"storages": [name], "links": [name, {"tag": name}]}},
    }
    settings, ours = imported(yaml.safe_dump(text))
    assert len(settings.targets) == len(settings.routes) == 1
    assert "injected" not in yaml.safe_load(ours)["targets"]


def test_names_that_become_the_same_are_told_apart(imported: Import) -> None:
    settings, _ = imported("storages: {A b: {module: m}, a-b: {module: n}}\n")
    assert [options(settings, name)["module"] for name in ("a-b", "a-b-2")] == ["m", "n"]


def test_the_command_prints_or_writes(tmp_path: Path) -> None:
    source, out = tmp_path / "config.yml", tmp_path / "ours.yaml"
    source.write_text(FLUX_LOCAL)
    printed = CliRunner().invoke(app, ["config", "import", str(source)])
    assert printed.exit_code == 0
    assert printed.stdout == convert(source)
    written = CliRunner().invoke(app, ["config", "import", str(source), "--out", str(out)])
    assert written.exit_code == 0
    assert out.read_text() == printed.stdout
    assert "config check" in written.stderr
    checked = CliRunner().invoke(
        app, ["--config", str(out), "--home", str(tmp_path / "home"), "config", "check"]
    )
    assert checked.exit_code == 0, checked.output
    out.write_text("mine")
    again = CliRunner().invoke(app, ["config", "import", str(source), "--out", str(out)])
    assert again.exit_code == 2
    assert out.read_text() == "mine"
