"""What is found without asking the SDK's samplers is what they say, and what is not sampled costs no spans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace as api
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from cuebook.telemetry.publish import publishing
from cuebook.telemetry.sampling import Selection
from cuebook.telemetry.trace import TraceContext, format_traceparent, parse_traceparent


class Odd(TraceIdRatioBased):
    """A program's own: describes itself as the one it is made from, and decides otherwise."""

    def should_sample(self, parent_context: object, trace_id: int, *args: object, **more: object) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE if trace_id % 2 else Decision.DROP)


SAMPLERS: list[Sampler] = [
    ALWAYS_ON,
    ALWAYS_OFF,
    StaticSampler(Decision.RECORD_ONLY),
    TraceIdRatioBased(0.3),
    Odd(0.3),
    ParentBased(ALWAYS_ON),
    ParentBased(Odd(0.3)),
    ParentBased(TraceIdRatioBased(0.3), remote_parent_not_sampled=ALWAYS_ON),
    ParentBased(ALWAYS_ON, remote_parent_sampled=ALWAYS_OFF),
    ParentBasedTraceIdRatio(0.3),
]


def by_the_sdk(sampler: Sampler, context: TraceContext) -> bool:
    parent = None
    if context.sampled is not None:
        span = SpanContext(context.trace_id, context.parent_id, True, TraceFlags(int(context.sampled)))
        parent = set_span_in_context(NonRecordingSpan(span))
    return sampler.should_sample(parent, context.trace_id, "run").decision is Decision.RECORD_AND_SAMPLE


@given(
    st.sampled_from(SAMPLERS),
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.sampled_from([None, False, True]),
)
def test_the_selection_is_that_of_the_sampler(
    sampler: Sampler, trace_id: int, parent_id: int, sampled: bool | None
) -> None:
    selection, context = Selection(sampler), TraceContext(trace_id, parent_id, sampled)
    assert selection.samples(context, "run") == by_the_sdk(sampler, context)
    if sampled is None:
        assert selection.bound is None or selection.takes(trace_id) == by_the_sdk(sampler, context)
    else:
        traceparent = format_traceparent(trace_id, parent_id, sampled=sampled)
        assert not selection.skips(traceparent) or not by_the_sdk(sampler, context)


@pytest.mark.parametrize("name", ["parentbased_traceidratio", "parentbased_always_on", "parentbased_always_off"])
def test_what_the_environment_can_ask_for_is_decided_without_the_sdk(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.01")
    provider = TracerProvider(shutdown_on_exit=False)
    selection = Selection(provider.sampler)
    assert selection.bound is not None
    assert selection.skips(f"00-{1:032x}-{1:016x}-00")
    assert selection.skips(f"00-{1:032x}-{1:016x}-02"), "a random id, not sampled"
    assert not selection.skips(f"00-{1:032x}-{1:016x}-01")
    assert not selection.skips("")


class Begun(SpanProcessor):
    """Counts the spans that the SDK has made."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_start(self, span: ReadableSpan, parent_context: object = None) -> None:
        self.spans.append(span)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """The provider of this process, with one trace in two."""
    found = TracerProvider(sampler=ParentBasedTraceIdRatio(0.5), shutdown_on_exit=False)
    monkeypatch.setattr(api, "get_tracer_provider", lambda: found)
    yield found
    found.shutdown()


def test_a_message_is_sampled_by_the_id_of_its_trace_and_has_a_span_only_then(provider: TracerProvider) -> None:
    begun = Begun()
    provider.add_span_processor(begun)
    selection = Selection(provider.sampler)
    sampled = set[int]()
    for _ in range(200):
        context = parse_traceparent(publishing("shop", "r", "cue").traceparent)
        assert context is not None
        assert context.sampled == selection.takes(context.trace_id)
        sampled |= {context.trace_id} if context.sampled else set()
    assert 50 < len(sampled) < 150, "one in two, and not one in two of one in two"
    assert {span.context.trace_id for span in begun.spans if span.context is not None} == sampled


def test_a_message_under_a_span_that_is_not_sampled_is_of_that_trace(provider: TracerProvider) -> None:
    above = SpanContext(7, 8, True, TraceFlags(0))
    with api.use_span(NonRecordingSpan(above)):
        assert publishing("shop", "r", "cue").traceparent == format_traceparent(7, 8, sampled=False)
        repeated = parse_traceparent(publishing("shop", "r", "cue", origin=(7, 9)).traceparent)
    assert repeated is not None
    assert repeated.trace_id != 7, "a run that repeats another has a trace of its own"


def test_a_message_under_a_sampled_span_has_a_span_below_it(provider: TracerProvider) -> None:
    begun = Begun()
    provider.add_span_processor(begun)
    with api.use_span(NonRecordingSpan(SpanContext(7, 8, True, TraceFlags(1)))):
        context = parse_traceparent(publishing("shop", "r", "cue").traceparent)
    assert context is not None
    (span,) = begun.spans
    assert (context.trace_id, context.sampled) == (7, True)
    assert span.parent is not None
    assert span.parent.span_id == 8
