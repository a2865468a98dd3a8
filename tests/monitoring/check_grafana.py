"""The dashboards are what Grafana's own model of them knows; see just test-prometheus, which brings it along."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.monitoring.dashboards import FOLDER

NOT_MODELLED = {"definition", "titleFormat", "textFormat"}
"""Fields of Prometheus' variables and annotations, which the model does not have, and Grafana does."""


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_nothing_is_lost_when_grafana_reads_a_dashboard(file: Any) -> None:
    importlib.import_module("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    model = importlib.import_module("grafana_foundation_sdk.models.dashboard").Dashboard
    encoder = importlib.import_module("grafana_foundation_sdk.cog.encoder").JSONEncoder()
    ours = json.loads(file.read_text())
    read = json.loads(encoder.encode(model.from_json(ours)))
    assert list(lost(ours, read, file.stem)) == []


def lost(ours: Any, read: Any, where: str) -> Iterator[str]:
    """What is not there any more, or is something else."""
    if isinstance(ours, dict) and isinstance(read, dict):
        for name, value in ours.items():
            if name in read:
                yield from lost(value, read[name], f"{where}.{name}")
            elif name not in NOT_MODELLED:
                yield f"{where}.{name}"
    elif isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        for n, (one, other) in enumerate(zip(ours, read, strict=True)):
            yield from lost(one, other, f"{where}[{n}]")
    elif ours != read:
        yield f"{where}: {ours!r}, read as {read!r}"
