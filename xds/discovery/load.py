"""LoadReportingService: what proxies say of the load they put on clusters, as metrics (X10).

Counters are summed over proxies; what is in progress is the sum of what each said last. A proxy may name any cluster, so their
number is bounded: what is beyond is counted under one name.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from xds import pb

SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
INTERVAL = timedelta(seconds=10)
CLUSTERS = 10_000
OTHERS = "(others)"

Request: Any = pb.message_class("envoy.service.load_stats.v3.LoadStatsRequest")
Response: Any = pb.message_class("envoy.service.load_stats.v3.LoadStatsResponse")

_COUNTED = {"total_successful_requests": "success", "total_error_requests": "error"}


class Loads(Collector):
    """The load on all clusters."""

    def __init__(self) -> None:
        self.issued: Counter[str] = Counter()  # by cluster, as all below
        self.finished: Counter[tuple[str, str]] = Counter()  # by cluster and result
        self.dropped: Counter[tuple[str, str]] = Counter()  # by cluster and category
        self.in_progress: Counter[str] = Counter()

    async def receive(self, context: Any, interval: timedelta = INTERVAL) -> None:
        """Take the reports of one stream until it ends."""
        if await context.read() is grpc.aio.EOF:
            return
        await context.write(Response(send_all_clusters=True, load_reporting_interval=interval))
        last: Counter[str] = Counter()
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                now = self._take(request.cluster_stats)
                self.in_progress.subtract(last)
                self.in_progress.update(now)
                last = now
        finally:
            self.in_progress.subtract(last)

    def collect(self) -> Iterator[Metric]:
        """The metrics, for a registry."""
        issued = CounterMetricFamily("xds_load_requests_issued", "Requests that proxies sent to a cluster.", labels=["cluster"])
        finished = CounterMetricFamily("xds_load_requests", "Requests to a cluster that ended.", labels=["cluster", "result"])
        dropped = CounterMetricFamily("xds_load_requests_dropped", "Requests that proxies dropped.", labels=["cluster", "category"])
        progress = GaugeMetricFamily("xds_load_requests_in_progress", "Requests under way to a cluster.", labels=["cluster"])
        for cluster, count in self.issued.items():
            issued.add_metric([cluster], count)
        for labels, count in self.finished.items():
            finished.add_metric(labels, count)
        for labels, count in self.dropped.items():
            dropped.add_metric(labels, count)
        for cluster, count in self.in_progress.items():
            progress.add_metric([cluster], count)
        yield from (issued, finished, dropped, progress)

    def _take(self, reports: Iterable[Any]) -> Counter[str]:
        """Count a report; what is in progress, by cluster."""
        progress: Counter[str] = Counter()
        for report in reports:
            cluster = self._known(report.cluster_name)
            categorised = 0
            for each in report.dropped_requests:
                self.dropped[cluster, each.category if len(self.dropped) < CLUSTERS else OTHERS] += each.dropped_count
                categorised += each.dropped_count
            if report.total_dropped_requests > categorised:
                self.dropped[cluster, ""] += report.total_dropped_requests - categorised
            for locality in report.upstream_locality_stats:
                self.issued[cluster] += locality.total_issued_requests
                progress[cluster] += locality.total_requests_in_progress
                for field, result in _COUNTED.items():
                    self.finished[cluster, result] += getattr(locality, field)
        return progress

    def _known(self, cluster: str) -> str:
        if cluster not in self.issued:
            if len(self.issued) >= CLUSTERS:
                return OTHERS
            self.issued[cluster] = 0
        return cluster
