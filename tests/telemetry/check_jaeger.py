"""A run as Jaeger shows it, through its query interface. Needs the program `jaeger`: just test-jaeger."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from cuebook.actors.client import Client
from cuebook.events.connection import connect
from tests.telemetry.processes import Processes
from tests.telemetry.test_traces import START_S, STORY, paths, play
from tests.waiting import eventually

JAEGER = "http://127.0.0.1:16686"
FROM_ELSEWHERE = ("project",)
"""Spans of the projections, which need a database and are not served here."""


async def test_jaeger_has_the_same_tree(nats_url: str, space: str, tmp_path: Path) -> None:
    program = shutil.which("jaeger")
    assert program is not None, "put jaeger on PATH"
    jaeger = await asyncio.create_subprocess_exec(
        program, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space, "CUEBOOK_JAEGER_URL": JAEGER}
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    try:
        await eventually(lambda: asked("/api/services"), within_s=START_S)
        async with Processes(tmp_path, env) as processes:
            await processes.serve("orchestrator", "shop:order")
            await processes.serve("agents", "shop:Shop")
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 2, within_s=START_S)
                status, _, error = await processes.command("events", "publish", "order.placed", '{"n": 7}')
                assert status == 0, error
                await play(client, "order-7")
            _, shown, _ = await processes.command("trace", "order-7", "-o", "json")
            trace_id = json.loads(shown)["trace_id"]
            expected = Counter({path: n for path, n in paths(STORY).items() if not path.endswith(FROM_ELSEWHERE)})
            await eventually(lambda: tree(trace_id) == expected, within_s=START_S)
    finally:
        jaeger.terminate()
        await jaeger.wait()


def asked(path: str) -> Any:
    try:
        with urllib.request.urlopen(JAEGER + path, timeout=5) as answer:
            return json.loads(answer.read())
    except OSError:
        return None


def tree(trace_id: str) -> Counter[str]:
    """The paths of a trace, as Jaeger tells it."""
    found = asked(f"/api/traces/{trace_id}")
    spans = {span["spanID"]: span for trace in (found or {}).get("data") or () for span in trace["spans"]}

    def path(span: dict[str, Any]) -> str:
        above = [one["spanID"] for one in span["references"] if one["refType"] == "CHILD_OF"]
        parent = spans.get(above[0]) if above else None
        return f"{path(parent)} > {span['operationName']}" if parent else str(span["operationName"])

    return Counter(map(path, spans.values()))
