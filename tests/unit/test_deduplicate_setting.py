"""`deduplicate` of a route, as the settings file has it: where it may stand, and what it makes of the route."""

import json
import re
from pathlib import Path

import pytest

from backends.base import single
from backends.errors import StorageError
from handlers.dedup import MINIMUM
from handlers.messages import Bundle, Payload, Resource, ResourceFetched
from handlers.plan import StorePlan
from worker import bootstrap, render, routing
from worker.belonging import known
from worker.cli_objects import _allowed
from worker.objects import Address
from worker.producer import BundleRef
from worker.settings import Settings, SettingsError, load_settings

PLACES = """
targets:
  disk: {}
  bus: {backend: file, layout: oc-v1}
  api: {backend: http, base_url: "https://store.example.org/"}
  deaf: {backend: http, base_url: "https://store.example.org/", reads: false}
  lax: {backend: http, base_url: "https://store.example.org/", if_none_match: false}
"""


def load(folder: Path, text: str) -> Settings:
    file = folder / "t.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file=file, home=folder, environ={"HOME": str(folder)})


def problem(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(folder, text)
    (only,) = caught.value.problems
    return only


def planned(settings: Settings) -> StorePlan:
    payload = Payload(location=(settings.home / "staging" / "x").as_uri())
    plan = routing.make_handlers(settings).plan(
        ResourceFetched(
            id="m",
            bundle=Bundle(bid="test-a", recipe_id="r"),
            resource=Resource(url="https://example.com/"),
            payload=payload,
        )
    )
    assert isinstance(plan, StorePlan)
    return plan


def test_it_is_off_unless_a_route_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, expected in (("{}", False), ("routes: {r: {deduplicate: true}}", True)):
        plan = planned(load(tmp_path, text))
        assert plan.deduplicate is expected
        render.plan(plan, as_json=True)
        assert ("deduplicate" in json.loads(capsys.readouterr().out)) is expected


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("{targets: [disk], transforms: [gunzip]}", "compares payloads as they were staged, and transforms"),
        ("{targets: [deaf]}", "target 'deaf' cannot be asked whether it still has a payload"),
        ("{targets: [disk], best_effort: [deaf]}", "target 'deaf' cannot be asked"),
        ("{targets: [disk], max_size: 5}", "compares payloads as they were staged, and max_size"),
        ("{targets: [bus]}", "lets a bundle refer to an object of another one, and in oc-v1 (target 'bus')"),
        ("{targets: [disk], layout: oc-v1}", "lets a bundle refer to an object of another one"),
        ("{targets: [lax]}", "target 'lax' may replace what others would refer to"),
    ],
)
def test_where_it_cannot_be_is_told_with_its_place(tmp_path: Path, route: str, expected: str) -> None:
    asked = route.replace("}", ", deduplicate: true}")
    told = problem(tmp_path, f"{PLACES}routes:\n  r: {asked}\n")
    assert re.search(rf"t\.yaml:\d+: routes\.r\.deduplicate: {re.escape(expected)}", told), told
    load(tmp_path, f"{PLACES}routes:\n  r: {route}\n")


def test_targets_that_answer_may_have_it(tmp_path: Path) -> None:
    load(tmp_path, f"{PLACES}routes:\n  r: {{targets: [disk, api], deduplicate: true}}\n")


async def test_a_worker_stores_once_what_two_bundles_hold(tmp_path: Path) -> None:
    """With everything embedded, the parts as bootstrap puts them together, and what `rm` asks before it deletes."""
    # One after the other: side by side both might be stored.
    settings = load(tmp_path, "{worker: {concurrency: 1}, routes: {r: {deduplicate: true}}}")
    async with bootstrap.open_producer(settings) as producer:
        for _ in range(2):
            bundle = await producer.start_bundle(BundleRef("https://example.com/"), "r")
            await bundle.add_resource("https://example.com/a.bin", None, 200, single(b"x" * MINIMUM))
            await bundle.complete({})
    async with bootstrap.open_service(settings, admin=False) as service:
        await service.run(until_idle=True)
    shown = service._metrics.render().decode()
    assert f'transload_deduplicated_bytes_total{{target="main"}} {float(MINIMUM)}' in shown
    stored = [path for path in (tmp_path / "storage").rglob("*.bin") if path.is_file()]
    assert len(stored) == 1
    key = stored[0].relative_to(tmp_path / "storage").as_posix()
    async with bootstrap.open_ledger(settings) as ledger:
        found = await known(ledger, "main", key)
        assert [bundle.state for bundle in await ledger.bundles()] == ["published"] * 2
    assert found is not None
    assert found.others == 1
    with pytest.raises(
        StorageError, match=r"is left alone: .* and of 1 other resource with the same payload"
    ):
        await _allowed(settings, Address("target", "main", key), key, force=False)
