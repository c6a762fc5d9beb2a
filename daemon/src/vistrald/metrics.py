"""Counters, gauges and histograms for Prometheus; llama-server's names where it has them."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric

from vistrald.engine.sequence import Result

GAP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2, 5)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 120, 300)


@dataclass(frozen=True)
class _Total:
    name: str
    text: str
    read: Callable[[], float]

    def describe(self) -> list[Metric]:
        return [CounterMetricFamily(self.name, self.text)]

    def collect(self) -> list[Metric]:
        return [CounterMetricFamily(self.name, self.text, value=self.read())]


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vistrald_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"vistrald_{name}", text, buckets=buckets, registry=self.registry)

        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens computed")
        self._prompt_seconds = counter("prompt_seconds", "Time spent on prefill, per request")
        self._tokens_predicted = counter("tokens_predicted", "Tokens generated")
        self._predicted_seconds = counter("tokens_predicted_seconds", "Time spent on decode")
        self._cache_hits = counter(
            "prefix_cache_hits", "Requests whose prompt began with a cached prefix", "source"
        )
        self._cache_tokens = counter(
            "prefix_cache_tokens", "Prompt tokens taken from the prefix cache", "source"
        )
        self._deadline_endings = counter("deadline_endings", "Answers that the deadline ended")
        self._requests = counter("requests", "Generation requests ended", "finish_reason")
        self._ttft = histogram("time_to_first_token_seconds", "From submission to first token")
        self._gaps = histogram("inter_token_seconds", "From one token to the next", GAP_SECONDS)
        self._drafted = counter("draft_tokens", "Tokens guessed")
        self._accepted = counter("draft_tokens_accepted", "Guessed tokens that came true")
        self._queue = histogram("queue_seconds", "From submission to the first batch")
        self._duration = histogram("request_seconds", "From submission to the last token")
        self._responses = counter("http_responses", "HTTP responses", "route", "status")

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when Prometheus asks."""
        Gauge(f"vistrald_{name}", text, registry=self.registry).set_function(read)

    def count(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A total that somebody else counts, read when Prometheus asks."""
        self.registry.register(_Total(f"vistrald_{name}", text, read))

    def info(self, **labels: str) -> None:
        gauge = Gauge("vistrald_info", "What runs here", list(labels), registry=self.registry)
        gauge.labels(**labels).set(1)

    def finished(self, result: Result) -> None:
        timings = result.timings
        self._requests.labels(result.finish_reason).inc()
        if result.ended_by == "deadline":
            self._deadline_endings.inc()
        self._prompt_tokens.inc(timings.prompt_n)
        for source, tokens in (
            ("resident", timings.cache_n - timings.disk_n),
            ("disk", timings.disk_n),
        ):
            if tokens:
                self._cache_hits.labels(source).inc()
                self._cache_tokens.labels(source).inc(tokens)
        self._prompt_seconds.inc(timings.prompt_ms / 1000)
        self._tokens_predicted.inc(timings.predicted_n)
        self._predicted_seconds.inc(timings.predicted_ms / 1000)
        self._drafted.inc(timings.draft_n)
        self._accepted.inc(timings.draft_n_accepted)
        for gap in result.gaps:
            self._gaps.observe(gap)
        if timings.predicted_n:
            self._queue.observe(timings.queue_ms / 1000)
            self._ttft.observe(timings.ttft_ms / 1000)
            self._duration.observe((timings.ttft_ms + timings.predicted_ms) / 1000)

    def refused(self, reason: str) -> None:
        self._requests.labels(reason).inc()

    def responded(self, route: str, status: int) -> None:
        self._responses.labels(route, str(status)).inc()

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
