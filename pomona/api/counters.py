"""What /metrics says, in Prometheus' form: numbers alone, nothing of any request's text."""

import functools
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pomona.serve.link import Link

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Counters:
    """The server's own counts, and the engine's as it last told them."""

    def __init__(self, link: Link) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        own = functools.partial(Histogram, buckets=SECONDS, registry=self.registry)
        about = "Requests by endpoint and status."
        self.requests = Counter("pomona_requests", about, ["endpoint", "status"], registry=self.registry)
        self.first = own("pomona_first_token_seconds", "From a request to its first token.")
        self.each = own("pomona_token_seconds", "Between tokens of an answer, on average.")
        self.whole = own("pomona_request_seconds", "From a request to its end.")
        self.registry.register(_Engine(link))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)


class _Engine(Collector):
    def __init__(self, link: Link) -> None:
        self.link = link

    def collect(self) -> Iterator[Metric]:
        stats, ready = self.link.stats, self.link.ready
        tokens = CounterMetricFamily("pomona_tokens", "Tokens by kind.", labels=["kind"])
        for kind in ("prompt", "cached", "said"):
            tokens.add_metric([kind], getattr(stats, f"{kind}_tokens"))
        yield tokens
        gauges = {
            "slots": ("Sequences computed at a time at most.", ready.slots if ready else 0),
            "running": ("Sequences that are being computed.", stats.running),
            "waiting": ("Sequences that wait for a slot.", stats.waiting),
            "in_flight": ("Sequences that have not ended.", self.link.in_flight),
            "up": ("Whether the engine computes.", int(ready is not None)),
        }
        for name, (about, value) in gauges.items():
            yield GaugeMetricFamily(f"pomona_{name}", about, value=value)
        counts = {
            "dispatches": ("Steps of the engine.", stats.dispatches),
            "preempted": ("Sequences that gave up their slot for a higher priority.", stats.preempted),
            "guessed": ("Tokens that were guessed.", stats.guessed),
            "guessed_right": ("Guesses that were right.", stats.guessed_right),
            "compiled": ("Programs compiled after warming up.", stats.compiled),
            "engine_restarts": ("Times the engine was started again.", self.link.restarts),
            "engine_busy_seconds": ("Time in which the engine had work.", stats.busy_seconds),
            "engine_backend_seconds": ("Of it, time in which the model was computed.", stats.backend_seconds),
        }
        for name, (about, number) in counts.items():
            yield CounterMetricFamily(f"pomona_{name}", about, value=number)
