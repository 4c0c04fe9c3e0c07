"""LoadReportingService: what proxies say of the load they put on clusters, as metrics (X10).

Counters are summed over proxies; what is in progress is the sum of what each said last. A proxy may name any cluster and locality, so
their number is bounded: what is beyond is counted under one name.
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
SERIES = 10_000  # pairs of cluster and locality, and of cluster and category
OTHERS = "(others)"

Request: Any = pb.message_class("envoy.service.load_stats.v3.LoadStatsRequest")
Response: Any = pb.message_class("envoy.service.load_stats.v3.LoadStatsResponse")

Place = tuple[str, str]  # cluster and locality: `region/zone/subzone`, empty where there is none

_COUNTED = {"total_successful_requests": "success", "total_error_requests": "error"}


class Loads(Collector):
    """The load on all clusters."""

    def __init__(self) -> None:
        self.issued: Counter[Place] = Counter()
        self.finished: Counter[tuple[Place, str]] = Counter()  # by place and result
        self.dropped: Counter[tuple[str, str]] = Counter()  # by cluster and category
        self.in_progress: Counter[Place] = Counter()

    async def receive(self, context: Any, interval: timedelta = INTERVAL) -> None:
        """Take the reports of one stream until it ends."""
        if await context.read() is grpc.aio.EOF:
            return
        await context.write(Response(send_all_clusters=True, load_reporting_interval=interval))
        last: Counter[Place] = Counter()
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
        place = ["cluster", "locality"]
        issued = CounterMetricFamily("xds_load_requests_issued", "Requests that proxies sent to a cluster.", labels=place)
        finished = CounterMetricFamily("xds_load_requests", "Requests to a cluster that ended.", labels=[*place, "result"])
        dropped = CounterMetricFamily("xds_load_requests_dropped", "Requests that proxies dropped.", labels=["cluster", "category"])
        progress = GaugeMetricFamily("xds_load_requests_in_progress", "Requests under way to a cluster.", labels=place)
        for where, count in self.issued.items():
            issued.add_metric(where, count)
        for (where, result), count in self.finished.items():
            finished.add_metric([*where, result], count)
        for labels, count in self.dropped.items():
            dropped.add_metric(labels, count)
        for where, count in self.in_progress.items():
            progress.add_metric(where, count)
        yield from (issued, finished, dropped, progress)

    def _take(self, reports: Iterable[Any]) -> Counter[Place]:
        """Count a report; what is in progress, by place."""
        progress: Counter[Place] = Counter()
        for report in reports:
            self._drop(report)
            for each in report.upstream_locality_stats:
                where = self._place(report.cluster_name, each.locality)
                self.issued[where] += each.total_issued_requests
                progress[where] += each.total_requests_in_progress
                for field, result in _COUNTED.items():
                    self.finished[where, result] += getattr(each, field)
        return progress

    def _drop(self, report: Any) -> None:
        """Count what was dropped, by category as far as the proxy says it."""
        categories = Counter({each.category: each.dropped_count for each in report.dropped_requests})
        categories[""] += max(0, report.total_dropped_requests - categories.total())
        for category, count in categories.items():
            if count:
                key = report.cluster_name, category
                self.dropped[key if key in self.dropped or len(self.dropped) < SERIES else (OTHERS, "")] += count

    def _place(self, cluster: str, locality: Any) -> Place:
        parts = (locality.region, locality.zone, locality.sub_zone)
        place = cluster, "/".join(parts).rstrip("/")
        return place if place in self.issued or len(self.issued) < SERIES else (OTHERS, "")
