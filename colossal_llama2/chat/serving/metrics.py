"""What the server counts, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

_PREFIX = "colossal_llama2_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """All figures of one server, those of its process among them."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = self._counter("requests", "Requests answered, by path and HTTP status", "path", "status")
        self.endings = self._counter("texts", "Texts ended, by reason", "model", "reason")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were read", "model")
        self.tokens = self._counter("generated_tokens", "Tokens written", "model")
        self.steps = self._counter("steps", "Forward passes that wrote a token of every running text", "model")
        self.waiting = self._gauge("queue_length", "Texts that wait for their turn", "model")
        self.running = self._gauge("running", "Texts that are read or written", "model")
        self.connections = Gauge(_PREFIX + "connections", "Open connections", registry=self._registry)
        self.first_token = self._histogram("time_to_first_token_seconds", "From request to first token", _SECONDS)
        self.seconds = self._histogram("text_seconds", "From request to the end of the text", _SECONDS)
        self.speed = self._histogram("tokens_per_second", "Tokens a second of a text, from its first one", _SPEEDS)

    def page(self) -> bytes:
        """Return all figures as text."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, help, labels, registry=self._registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, help, labels, registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(_PREFIX + name, help, ["model"], registry=self._registry, buckets=buckets)
