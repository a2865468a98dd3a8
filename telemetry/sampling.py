"""Whether a run is traced: as whoever began it has decided, else by its trace id. The same in every process.

Most runs are not, so what the SDK's samplers would say is found without asking them, wherever that is plain.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from cuebook.telemetry.trace import TraceContext

__all__ = ["Selection"]

_LENGTH: Final = 55
"""Characters of a `traceparent`, version 00."""
_UNSAMPLED: Final = frozenset("02468ace")
"""How a `traceparent` ends that is not sampled: bit 0 of its flags says it. Source: W3C Trace Context, 3.2.2.5."""
_LOW: Final = TraceIdRatioBased.TRACE_ID_LIMIT


class Selection:
    """What a sampler selects. `follows_parents`: a decision that has been made counts, whatever it is.

    `bound`: where nobody has decided, the traces are selected whose id, of which the low 64 bits count, is below it;
    None where only the sampler knows.
    """

    __slots__ = ("_sampler", "bound", "follows_parents")

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        root: Sampler | None = getattr(sampler, "_root", None) if _decides_as(sampler, ParentBased) else None
        self.follows_parents = root is not None and _without(sampler, root) == _without(ParentBased(root), root)
        self.bound = _bound(root if root is not None and self.follows_parents else sampler)

    def skips(self, traceparent: str) -> bool:
        """Whether whoever began this trace has decided against it, and that counts: a quick look, for most runs."""
        return traceparent[-1:] in _UNSAMPLED and len(traceparent) == _LENGTH and self.follows_parents

    def takes(self, trace_id: int) -> bool:
        """Whether the trace, about which nobody has decided, is selected. Only where there is a `bound`."""
        return self.bound is not None and trace_id & _LOW < self.bound

    def samples(self, context: TraceContext, name: str) -> bool:
        """Whether the trace is selected."""
        parent = None
        if context.sampled is not None:
            if self.follows_parents:
                return context.sampled
            flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
            parent = set_span_in_context(
                NonRecordingSpan(SpanContext(context.trace_id, context.parent_id, True, flags))
            )
        elif self.bound is not None:
            return self.takes(context.trace_id)
        result = self._sampler.should_sample(parent, context.trace_id, name)
        return result.decision is Decision.RECORD_AND_SAMPLE


def _bound(sampler: Sampler) -> int | None:
    if sampler is ALWAYS_ON:
        return _LOW + 1
    if sampler is ALWAYS_OFF:
        return 0
    if isinstance(sampler, TraceIdRatioBased) and _decides_as(sampler, TraceIdRatioBased):
        return sampler.bound
    return None


def _without(sampler: Sampler, root: Sampler) -> str:
    """How a sampler describes itself, but for what it does with roots."""
    return sampler.get_description().replace(root.get_description(), "", 1)


def _decides_as(sampler: Sampler, kind: type[Sampler]) -> bool:
    """Whether it is of this kind and no subclass with a mind of its own; those for the environment are subclasses."""
    return getattr(type(sampler), "should_sample", None) is kind.should_sample
