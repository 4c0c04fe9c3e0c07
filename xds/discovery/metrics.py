"""What the server counts, under Istio's names where Istio has one, so that its dashboards work.

Istio's counters have no `_total` at the end of their names, which `prometheus_client` always adds; and a push must not pay for
labels and locks. So these are plain numbers, which a collector reads when it is asked.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 3, 5, 10, 20, 30)
_BYTES = (1_000, 10_000, 100_000, 1_000_000, 4_000_000, 10_000_000, 40_000_000)


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics(Collector):
    """The numbers of one server."""

    def __init__(self) -> None:
        self.gauges: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)  # open streams, responses encoded, bytes unwritten
        self.pushes: Counter[str] = Counter()  # by type, as all below
        self.resources: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()
        self.expired_nonces: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()  # by gRPC status
        self.write_timeouts = 0
        self.internal_errors = 0
        self.convergence = Histogram(_SECONDS)
        self.send_time = Histogram(_SECONDS)
        self.size = Histogram(_BYTES)

    def collect(self) -> Iterator[Metric]:
        """The metrics, for a registry."""
        streams, encoded, unwritten = self.gauges()
        yield _family("pilot_xds", "Streams that are open.", "gauge", [({}, streams)])
        yield _by("pilot_xds_pushes", "Responses sent, by type.", "type", self.pushes)
        yield _by("pilot_total_xds_rejects", "Responses that a proxy rejected, by type.", "type", self.rejects)
        yield _by("pilot_xds_expired_nonce", "Answers to a response that has been superseded.", "type", self.expired_nonces)
        yield _count("pilot_xds_write_timeout", "Streams ended because a proxy did not read.", self.write_timeouts)
        yield _count("pilot_total_xds_internal_errors", "Streams ended by a fault of ours.", self.internal_errors)
        yield _by("xds_resources_sent", "Resources sent, by type.", "type", self.resources)
        yield _by("xds_streams_refused", "Streams refused, by gRPC status.", "status", self.refused)
        yield _count("xds_responses_encoded", "Responses encoded; the others were shared.", encoded)
        yield _family("xds_unwritten_bytes", "Bytes that wait for proxies to read.", "gauge", [({}, unwritten)])
        yield _histogram("pilot_proxy_convergence_time", "Seconds from a change until a proxy was sent it.", self.convergence)
        yield _histogram("pilot_xds_send_time", "Seconds that the transport took a response in.", self.send_time)
        yield _histogram("pilot_xds_config_size_bytes", "Sizes of responses.", self.size)


def _family(name: str, text: str, kind: str, samples: Iterable[tuple[dict[str, str], float]]) -> Metric:
    metric = Metric(name, text, kind)
    for labels, value in samples:
        metric.add_sample(name, labels, value)
    return metric


def _count(name: str, text: str, value: float) -> Metric:
    return _family(name, text, "unknown", [({}, value)])


def _by(name: str, text: str, label: str, values: Counter[str]) -> Metric:
    return _family(name, text, "unknown", [({label: key}, value) for key, value in sorted(values.items())])


def _histogram(name: str, text: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=values.buckets(), sum_value=values.sum)
