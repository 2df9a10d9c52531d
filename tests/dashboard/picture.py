"""Draws the dashboard as Grafana lays it out, of a minute of two real workers under a real Prometheus: to be looked at.

    python -m tests.dashboard.picture dashboard.png

Needs matplotlib, which nothing else here does: pip install matplotlib. Grafana itself shows more, where it can be had:
`docker run -p 3000:3000 grafana/grafana`, then Dashboards, New, Import.
"""

import argparse
import asyncio
import json
import math
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.alerts.rules import RULES
from tests.dashboard.board import FILE
from tests.dashboard.panels import Query, asked
from tests.support.cli import Transload
from tests.support.processes import free_port
from tests.support.prometheus import Prometheus, PrometheusServer, scraping
from tests.support.workers import workers
from worker.bootstrap import open_producer, open_queue
from worker.producer import BundleRef
from worker.queues.base import OutgoingMessage
from worker.settings import load_settings

WINDOW = "5s"
_CELL = (0.72, 0.42)
"""Inches of one of Grafana's 24 columns, and of one of its lines."""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("file", type=Path)
    options.add_argument("--seconds", type=float, default=60.0)
    given = options.parse_args()
    Prometheus().start()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_live(Path(folder), given.seconds, given.file))
    print(f"wrote {given.file}")


async def _live(folder: Path, seconds: float, file: Path) -> None:
    ports = {"pod-a": free_port(), "pod-b": free_port()}
    with (
        scraping(folder / "prometheus", ports, RULES, every="500ms") as server,
        workers(Transload(folder / "home"), folder / "logs") as pool,
    ):
        for port in ports.values():
            pool.start("run", environ={"TRANSLOAD_ADMIN__PORT": str(port)})
        await asyncio.to_thread(server.until, lambda: len(server.query("transload_live == 1")) == len(ports))
        began = time.time()
        await _load(folder / "home", began + seconds)
        _draw(server, began, time.time(), file)


async def _load(home: Path, until: float) -> None:
    """Bundles of every size at a rate that comes and goes, some of them left open, and now and then a message that is none."""
    settings = load_settings(file=None, home=home, environ={})
    chance = random.Random(6)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(open_producer(settings))
        queue = await stack.enter_async_context(open_queue(settings))
        while time.time() < until:
            bundle = await producer.start_bundle(BundleRef("https://example.com/"), "fr")
            for number in range(chance.randint(1, 12)):
                size = int(10 ** chance.uniform(2, 6.5))
                url = f"https://example.com/{number}.bin"
                await bundle.add_resource(url, "application/octet-stream", 200, _payload(size))
            if chance.random() < 0.9:
                await bundle.complete({})
            if chance.random() < 0.1:
                await queue.send([OutgoingMessage(b"{")])
            await asyncio.sleep(0.4 + 0.4 * math.sin(time.time() / 5))


async def _payload(size: int) -> AsyncIterator[bytes]:
    yield bytes(size)


def _draw(server: PrometheusServer, began: float, ended: float, file: Path) -> None:
    panels = json.loads(FILE.read_text(encoding="utf-8"))["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    mpl.use("Agg")
    plt.style.use("dark_background")
    figure = plt.figure(figsize=(24 * _CELL[0], height * _CELL[1]))
    for panel in panels:
        place = panel["gridPos"]
        left, bottom = place["x"] / 24, 1 - (place["y"] + place["h"]) / height
        box = (left + 0.035, bottom + 1.9 / height, place["w"] / 24 - 0.045, (place["h"] - 3) / height)
        if panel["type"] == "row":
            figure.text(0.005, bottom + 0.2 / height, panel["title"], weight="bold", size=12)
        elif panel["type"] == "stat":
            figure.text(left + 0.01, bottom + 3 / height, panel["title"], size=10)
            figure.text(left + 0.01, bottom + 1 / height, _number(server, panel), size=22, color="lightgreen")
        else:
            _lines(server, panel, figure.add_axes(box), (began, ended))
    figure.savefig(file, dpi=70)


def _number(server: PrometheusServer, panel: Mapping[str, Any]) -> str:
    (found,) = server.query(_expression(panel["targets"][0])) or (None,)
    return "No data" if found is None else _shown(found.value, panel["fieldConfig"]["defaults"]["unit"])


def _lines(server: PrometheusServer, panel: Mapping[str, Any], axes: Any, span: tuple[float, float]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    bars = defaults["custom"].get("drawStyle") == "bars"
    for target in panel["targets"]:
        for series in server.history(_expression(target), *span, 1.0):
            points = [(float(at) - span[0], float(value)) for at, value in series["values"]]
            name = _name(target["legendFormat"], series["metric"])
            color = _color(panel, name)
            if bars:
                axes.bar(*zip(*points, strict=True), width=1, label=name, color=color)
            else:
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, color=color)
    axes.set_title(panel["title"], loc="left", size=10)
    axes.set_xlim(0, span[1] - span[0])
    axes.set_ylim(bottom=0, top=defaults.get("max"))
    axes.yaxis.set_major_formatter(lambda value, _: _shown(value, defaults["unit"]))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)
    if axes.lines or axes.patches:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=4, fontsize=7, frameon=False)
    else:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center")


def _name(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


def _color(panel: Mapping[str, Any], series: str) -> str | None:
    """What an override gives it, else the next one of the palette."""
    for override in panel["fieldConfig"]["overrides"]:
        if re.search(override["matcher"]["options"].strip("/"), series):
            color: str = override["properties"][0]["value"]["fixedColor"]
            return color
    return None


def _expression(target: Mapping[str, Any]) -> str:
    return asked(Query(target["expr"]), window=WINDOW)


def _shown(value: float, unit: str) -> str:
    """As Grafana writes a value of that unit, or nearly so."""
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit in {"bytes", "Bps"}:
        power = min(4, int(math.log(value, 1024))) if value >= 1 else 0
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}" + (
            "/s" if unit == "Bps" else ""
        )
    if unit == "s":
        return f"{value * 1000:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
    return f"{value:.3g}" + (" /s" if unit == "cps" else "")


if __name__ == "__main__":
    main()
