"""Spans on their way out: bounded, counted, and never in the way of the work."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from cuebook.events.errors import ConfigurationError
from cuebook.telemetry import pipeline
from cuebook.telemetry.attributes import ALL
from cuebook.telemetry.pipeline import SpanQueue, Tracing, exporter_of
from cuebook.telemetry.settings import is_on
from cuebook.telemetry.span import Span
from cuebook.telemetry.trace import TraceContext, find_context, parse_traceparent
from tests.telemetry.collector import collector

ROOT = Path(__file__).parent.parent.parent


def span(number: int) -> Span:
    return Span(name="x", trace_id=1, span_id=number + 1, parent_id=0, begin=1, end=2)


class Stuck(SpanExporter):
    """A collector that has stopped answering; `gate` opens at the end of the test."""

    def __init__(self) -> None:
        self.gate, self.asked = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.gate.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.gate.wait()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    monkeypatch.setattr(pipeline, "FLUSH_S", 0.01)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    exporter = Stuck()
    yield exporter
    exporter.gate.set()


def test_a_collector_that_hangs_holds_up_nobody_and_what_is_lost_is_counted(
    stuck: Stuck, caplog: pytest.LogCaptureFixture
) -> None:
    queue = SpanQueue(stuck, Resource({}))
    queue.put(span(0))
    assert stuck.asked.wait(60)
    for number in range(1, 101):  # none of them waits, or this would never end
        queue.put(span(number))
    assert (queue.dropped, queue.sent) == (90, 0)
    queue.shutdown()
    assert queue.dropped == 100
    assert [one.getMessage() for one in caplog.records] == ["spans were lost; the work is not held up"]
    stuck.gate.set()
    queue._thread.join()
    assert queue.refused + queue.dropped == 101


def test_a_span_after_the_end_is_dropped(stuck: Stuck) -> None:
    queue = SpanQueue(stuck, Resource({}))
    queue.shutdown()
    queue.put(span(1))
    assert queue.dropped == 1


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, False),
    ],
)
def test_the_standard_variables_say_whether_there_are_traces(environ: dict[str, str], on: bool) -> None:
    assert is_on(environ) is on


@pytest.mark.parametrize(
    "environ", [{"OTEL_TRACES_EXPORTER": "zipkin"}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}], ids=str
)
def test_an_exporter_that_there_is_not_is_refused_by_name(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="=".join(*environ.items())):
        exporter_of(environ)


def test_without_the_exporters_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigurationError) as raised:
        exporter_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"})
    assert "cuebook[otlp]" in raised.value.remedy


def test_all_processes_sample_the_same_runs(monkeypatch: pytest.MonkeyPatch, stuck: Stuck) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    runs = [find_context(f"r{number}", "", "c") for number in range(2_000)]
    one, other = Tracing("one", stuck), Tracing("other", stuck)
    chosen = [context for context in runs if one.samples(context, "run")]
    assert chosen == [context for context in runs if other.samples(context, "task")]
    assert 100 < len(chosen) < 300
    assert one.samples(TraceContext(1 << 127 | (1 << 64) - 1, 5, True), "run"), "who began the trace has decided"
    assert not one.samples(TraceContext(1, 5, False), "run")
    one.close()
    other.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        f"00-{'0' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'0' * 16}-01",
        f"ff-{'1' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'1' * 16}-01-more",
        f"00-{'A' * 32}-{'1' * 16}-01",
    ],
)
def test_a_traceparent_that_does_not_count_is_as_none(text: str) -> None:
    assert parse_traceparent(text) is None
    assert find_context("r", text, "c") == find_context("r", "", "c")


def test_services_without_traces_load_nothing_of_opentelemetry() -> None:
    program = (
        "import sys, cuebook.cli.serving.services, cuebook.cli.session, cuebook.actors.orchestrator.service,"
        "cuebook.actors.runtime, cuebook.projections.runner\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_every_attribute_is_in_the_document_and_none_that_is_not_there() -> None:
    table = (ROOT / "docs" / "telemetry.md").read_text().partition("## Attributes")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z_.]+)`", table, re.MULTILINE)) == sorted(ALL)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_what_the_collector_wants_for_a_secret_comes_from_a_file(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "otlp-headers"
    secret.write_text("authorization=Bearer sesame\n")
    monkeypatch.setattr(pipeline, "FLUSH_S", 60.0)
    with collector(protocol) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"@{secret}")
        tracing = Tracing("test", exporter_of())
        tracing.emit([span(1)])
        tracing.close()
    assert found.tokens == {"Bearer sesame"}


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_file_is_no_secret_and_no_header(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "otlp-headers"
    secret.write_text(text)
    monkeypatch.setattr(pipeline, "FLUSH_S", 60.0)
    with collector("http/protobuf") as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"@{secret}")
        tracing = Tracing("test", exporter_of())
        tracing.emit([span(1)])
        tracing.close()
    assert len(found.spans) == 1
    assert found.tokens == set()


@pytest.mark.parametrize("text", [None, "sesame"])
def test_a_file_without_headers_is_refused_and_not_shown(text: str | None, tmp_path: Path) -> None:
    secret = tmp_path / "otlp-headers"
    if text is not None:
        secret.write_text(text)
    with pytest.raises(ConfigurationError, match="otlp-headers") as raised:
        exporter_of({"OTEL_EXPORTER_OTLP_HEADERS": f"@{secret}"})
    assert "sesame" not in str(raised.value)
