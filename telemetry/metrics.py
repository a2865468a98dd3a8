"""Metrics of this process: asked for from its parts, in the data model of OpenTelemetry, written by its exporter.

Nothing is gathered while nobody looks. Who looks is answered by a thread of its own (see scraping): it lets the event
loop tell how everything is, at most once a second, and writes that down itself. What an agent measures with instruments
of OpenTelemetry comes along, once `install` was called.

Needs the extra `metrics`; everything of it is imported only where metrics are served.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from cuebook.events.errors import ConfigurationError
from cuebook.telemetry import metric_names as names
from cuebook.telemetry.loop_delay import LoopDelay
from cuebook.telemetry.metric import Distribution, Metric, Sample, Source

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource
    from prometheus_client import CollectorRegistry

__all__ = ["Metrics"]

SCOPE: Final = "cuebook"
FRESH_S: Final = 1.0
"""Whoever looks again within this time sees the same."""

logger = logging.getLogger(__name__)


class Metrics:
    """The metrics of one process. Raises ConfigurationError where the extra is not installed.

    `look` belongs to the event loop, `write` to one thread at a time, whichever.
    """

    def __init__(self, service: str, space: str) -> None:
        """`service` is the `service.name`, unless OTEL_SERVICE_NAME says another; `space` a label of everything."""
        self.loop_delay = LoopDelay()
        self._space, self._sources, self._failed = space, list[Source](), set[Source]()
        self._samples: list[Sample] = []
        self._looked_at = 0.0
        self._began_ns = time.time_ns()
        self._registry, self._provider, self._resource = _pipeline(service, self._data)
        blocked = names.LOOP_BLOCKED
        self._provider.get_meter(SCOPE, _version()).create_observable_gauge(
            blocked.name, [self._blocked], unit=blocked.unit, description=blocked.about
        )

    def add(self, source: Source) -> None:
        """Ask this one too, from now on."""
        self._sources.append(source)

    def install(self) -> None:
        """Let instruments that this process' own code makes with OpenTelemetry come along. Once in a process."""
        from opentelemetry import metrics as api

        api.set_meter_provider(self._provider)

    async def look(self) -> None:
        """Ask all sources how it is now, unless that was done just before. One that raises is left out."""
        now = time.monotonic()
        if self._looked_at and now - self._looked_at < FRESH_S:
            return
        found = self.loop_delay.samples()
        for source in self._sources:
            try:
                found += await source()
            except Exception:  # the others are worth showing
                if source not in self._failed:
                    logger.exception("some metrics cannot be told")
                self._failed.add(source)
        self._samples, self._looked_at = found, now

    def write(self, accept: str) -> tuple[str, bytes]:
        """Content type and text for Prometheus, in the format that its `Accept` header prefers."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)

    def close(self) -> None:
        """No more."""
        self._provider.shutdown()

    def _blocked(self, _: CallbackOptions) -> list[Observation]:
        """Told by the one thing that is known while the event loop stands still."""
        from opentelemetry.metrics import Observation

        return [Observation(self.loop_delay.blocked_s(), {"space": self._space})]

    def _data(self, theirs: MetricsData) -> MetricsData:
        """What the sources told, with what other code of this process has measured."""
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        groups: dict[Metric, list[Sample]] = {}
        for sample in self._samples:
            groups.setdefault(sample.metric, []).append(sample)
        now = time.time_ns()
        metrics = [self._as_data(metric, samples, now) for metric, samples in groups.items()]
        ours = ScopeMetrics(scope=InstrumentationScope(SCOPE, _version()), metrics=metrics, schema_url="")
        scopes = [ours]
        for resource in theirs.resource_metrics:
            scopes += resource.scope_metrics
        return MetricsData([ResourceMetrics(resource=self._resource, scope_metrics=scopes, schema_url="")])

    def _as_data(self, metric: Metric, samples: Iterable[Sample], now_ns: int) -> Any:
        from opentelemetry.sdk.metrics import export

        points: list[Any] = []
        for sample in samples:
            attributes = {"space": self._space, **dict(zip(metric.labels, sample.labels, strict=True))}
            value = sample.value
            if isinstance(value, Distribution):
                points.append(_histogram_point(value, attributes, self._began_ns, now_ns))
            else:
                points.append(
                    export.NumberDataPoint(
                        attributes=attributes, start_time_unix_nano=self._began_ns, time_unix_nano=now_ns, value=value
                    )
                )
        cumulative = export.AggregationTemporality.CUMULATIVE
        data: Any
        match metric.kind:
            case "gauge":
                data = export.Gauge(data_points=points)
            case "counter":
                data = export.Sum(data_points=points, aggregation_temporality=cumulative, is_monotonic=True)
            case "histogram":
                data = export.Histogram(data_points=points, aggregation_temporality=cumulative)
        return export.Metric(name=metric.name, description=metric.about, unit=metric.unit, data=data)


def _histogram_point(value: Distribution, attributes: dict[str, str], began_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=began_ns,
        time_unix_nano=now_ns,
        count=sum(value.counts),
        sum=value.total,
        bucket_counts=value.counts,
        explicit_bounds=value.bounds,
        min=0.0,
        max=0.0,
    )


def _pipeline(service: str, complete: Any) -> tuple[CollectorRegistry, MeterProvider, Resource]:
    """The exporter's reader, fed by `complete` with more than the SDK gathers; and the metrics of any process."""
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
    except ImportError as error:
        raise ConfigurationError(
            "metrics are to be served, but the exporter is not installed",
            remedy="install 'cuebook[metrics]', or leave out --metrics and CUEBOOK_METRICS",
        ) from error
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource

    class Reader(PrometheusMetricReader):
        def _receive_metrics(self, metrics_data: MetricsData, *_: Any, **__: Any) -> None:
            super()._receive_metrics(complete(metrics_data))

    class Process(ProcessCollector):
        def _boot_time(self) -> float:  # a sandbox may hide /proc/stat, which its base reads
            return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    registry = CollectorRegistry()
    resource = Resource.create(
        {
            SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME") or service,
            SERVICE_VERSION: _version(),
            SERVICE_INSTANCE_ID: f"{os.uname().nodename}-{os.getpid()}",
        }
    )
    reader = Reader(registry=registry, scope_info_enabled=False)
    provider = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    Process(registry=registry)
    GCCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry, provider, resource


def _version() -> str:
    try:
        return metadata.version("cuebook")
    except metadata.PackageNotFoundError:
        return ""
