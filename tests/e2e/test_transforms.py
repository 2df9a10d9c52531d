"""Routes with transforms as a new user tries them: publish files, run the worker, look at what lies there."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from backends.base import single
from handlers.errors import Refused
from handlers.transforms.base import Limits, Meter, Part, Work
from handlers.transforms.decrypt import Decrypt
from handlers.transforms.key_ring import KeyOptions, KeyRingOptions, load_ring
from tests.support.cli import Transload

TEXT = "".join(f"{number}\n" for number in range(20_000)).encode()
FILES = {"a/one.txt": b"one", "a/two.txt": TEXT, "é.txt": b"three"}


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return made.getvalue()


def tarred() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


def configured(tmp_path: Path, settings: dict[str, Any], **environ: str) -> Transload:
    config = tmp_path / "transload.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    return Transload(tmp_path / "home", config, environ)


def published(transload: Transload, folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return transload.ok("publish", folder, "--recipe", "r").strip()


def stored(transload: Transload, bid: str) -> dict[str, bytes]:
    """By key below the bundle, without the digests in names."""
    root = transload.home / "storage" / f"bundle_{bid}"
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".meta":
            first, *rest = path.relative_to(root).parts
            stem, _, suffix = first.rpartition("-")
            found["/".join([stem + suffix[16:], *rest])] = path.read_bytes()
    return found


def facts_of(transload: Transload, bid: str, stem: str) -> dict[str, Any]:
    (path,) = (transload.home / "storage" / f"bundle_{bid}").glob(f"{stem}-*.meta")
    facts: dict[str, Any] = json.loads(path.read_bytes())
    return facts


def test_archives_become_their_files_and_the_manifest_lists_them(tmp_path: Path) -> None:
    transload = configured(tmp_path, {"routes": {"default": {"transforms": ["untar", "unzip", "gunzip"]}}})
    files = {
        "t.tar.gz": tarred(),
        "z.zip": zipped(),
        "n.txt.gz": gzip.compress(TEXT),
        "p.html": b"<html>",
        "fake.zip": b"no zip at all",
    }
    bid = published(transload, tmp_path / "in", files)
    transload.ok("run", "--until-idle")
    wanted = {"n.txt": TEXT, "p.html": b"<html>", "fake.zip": b"no zip at all"}
    for archive in ("t.tar.gz", "z.zip"):
        wanted |= {f"{archive}/{name}": data for name, data in FILES.items()}
    assert stored(transload, bid) == wanted
    (verification,) = transload.lines("verify", bid)
    assert (verification["passed"], verification["objects"]) == (True, 9)
    (completion,) = transload.lines("completions")
    assert (completion["bundle_id"], completion["resources_count"]) == (bid, 5)
    manifest = json.loads((transload.home / "storage" / f"bundle_{bid}" / "bundle.meta").read_bytes())
    listed = [each for each in manifest["resources"] if each["url"].endswith("z.zip")]
    assert {each["member"]: each["sha256"] for each in listed} == {
        name: sha256(data).hexdigest() for name, data in FILES.items()
    }
    zip_file = files["z.zip"]
    assert all(
        each["payload"] == {"size": len(zip_file), "sha256": sha256(zip_file).hexdigest()} for each in listed
    )
    assert all(each["transforms"] == ["unzip"] for each in listed)
    assert facts_of(transload, bid, "fake")["notes"] == ["claims to be a zip and does not begin like one"]


@pytest.mark.parametrize("size", [3, 20, 3_000])
def test_case_88_a_truncated_gzip_is_a_dead_letter_and_no_object(tmp_path: Path, size: int) -> None:
    transload = configured(tmp_path, {"routes": {"default": {"transforms": ["gunzip"]}}})
    bid = published(transload, tmp_path / "in", {"n.txt.gz": gzip.compress(TEXT)[:size]})
    transload.ok("run", "--until-idle")
    assert stored(transload, bid) == {}
    (dead,) = transload.lines("dlq", "ls")
    assert dead["reason"] == "payload_corrupt"


def test_case_84_a_bomb_is_a_dead_letter_that_names_the_limit_and_the_entry(tmp_path: Path) -> None:
    route = {"transforms": ["unzip"], "limits": {"entry": 1_000_000}}
    transload = configured(tmp_path, {"routes": {"default": route}})
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10_000_000))
    bid = published(transload, tmp_path / "in", {"bomb.zip": made.getvalue()})
    transload.ok("run", "--until-idle")
    assert stored(transload, bid) == {}
    (dead,) = transload.lines("dlq", "ls")
    assert dead["reason"] == "payload_limit"
    (shown,) = transload.lines("dlq", "show", dead["id"])
    assert "entry (limits.entry: 1000000) is exceeded at 'zeros'" in json.dumps(shown)


def test_the_seeds_variable_unzips(tmp_path: Path) -> None:
    transload = Transload(tmp_path / "home", environ={"OC_STORAGE_USE_UNZIP": "true"})
    bid = published(transload, tmp_path / "in", {"z.zip": zipped(), "n.txt.gz": gzip.compress(TEXT)})
    transload.ok("run", "--until-idle")
    assert stored(transload, bid) == {
        "n.txt": TEXT,
        **{f"z.zip/{name}": data for name, data in FILES.items()},
    }


async def test_what_is_encrypted_is_read_back_with_its_key_and_not_without(tmp_path: Path) -> None:
    key = tmp_path / "k1.key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    transload = configured(
        tmp_path,
        {
            "routes": {"default": {"transforms": ["compress", "encrypt"]}},
            "encryption": {"primary": "k1", "keys": {"k1": {"key_file": "k1.key"}}},
        },
    )
    bid = published(transload, tmp_path / "in", {"n.txt": TEXT})
    transload.ok("run", "--until-idle")
    ((name, sealed),) = stored(transload, bid).items()
    assert name == "n.txt.zst.enc"
    assert TEXT[:1_000] not in sealed
    assert facts_of(transload, bid, "n")["transforms"] == ["compress", "encrypt"]
    ring = await load_ring(KeyRingOptions(primary="k1", keys={"k1": KeyOptions(key_file=key)}))
    opened = await read_back(Decrypt(ring), sealed)
    assert opened.startswith(b"\x28\xb5\x2f\xfd"), "zstd"
    with pytest.raises(Refused, match="payload_corrupt"):
        await read_back(Decrypt(ring), sealed[:-1])


async def read_back(decrypt: Decrypt, sealed: bytes) -> bytes:
    work = Work(Meter(Limits()), Path())
    return b"".join(
        [chunk async for part in decrypt.apply(Part(single(sealed)), work) async for chunk in part.chunks]
    )


def test_explain_names_the_steps(tmp_path: Path) -> None:
    key = tmp_path / "k1.key"
    transload = configured(
        tmp_path,
        {
            "routes": {"default": {"transforms": ["gunzip", "encrypt"]}},
            "encryption": {"primary": "k1", "keys": {"k1": {"key_file": str(key)}}},
        },
    )
    message = tmp_path / "message.json"
    location = f"file://{transload.home}/staging/x"
    message.write_text(
        json.dumps(
            {
                "type": "resource.fetched",
                "version": 1,
                "id": "m",
                "bundle": {"bid": "test-a", "recipe_id": "r", "primary_url": "https://example.com/"},
                "resource": {"url": "https://example.com/x.gz"},
                "payload": {"location": location},
            }
        )
    )
    (plan,) = transload.lines("explain", message)
    assert plan["transforms"] == [{"step": "gunzip"}, {"step": "encrypt"}]
    done = transload.run("run", "--until-idle")
    assert done.returncode == 1
    assert "k1.key" in done.stderr
