"""The agent's metrics, in a registry of its own. Base units; no label names a guest, a volume or a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.protocol import Attempt, AttemptReport, DomainState, HostReport, MigrateDomain, MigrationProgress

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_DOWNTIME_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_CALL_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters and histograms are kept here; gauges are read from the agent at each scrape."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.attempts = Counter(
            "migrd_agent_attempts", "Ended attempts", ("kind", "outcome"), registry=registry
        )
        self.attempt_seconds = Histogram(
            "migrd_agent_attempt_seconds", "Duration of attempts", ("kind",),
            buckets=_DURATION_S, registry=registry,
        )  # fmt: skip
        self.downtime_seconds = Histogram(
            "migrd_agent_migration_downtime_seconds", "Downtime of migrations, as libvirt reports it",
            buckets=_DOWNTIME_S, registry=registry,
        )  # fmt: skip
        self.migration_bytes = Counter(
            "migrd_agent_migration_bytes", "Memory sent by ended migrations", registry=registry
        )
        self.auth_failures = Counter(
            "migrd_agent_auth_failures", "Clients refused for their certificate", ("reason",),
            registry=registry,
        )  # fmt: skip
        self.requests = Counter(
            "migrd_agent_requests", "HTTP requests", ("route", "status"), registry=registry
        )
        self.inventory_seconds = Histogram(
            "migrd_agent_inventory_seconds", "Duration of one look at the host",
            buckets=_CALL_S, registry=registry,
        )  # fmt: skip
        self.subscribers_dropped = Counter(
            "migrd_agent_event_subscribers_dropped", "Event streams ended for lagging", registry=registry
        )
        self.started = Gauge(
            "migrd_agent_start_time_seconds", "Start of this agent, Unix time", registry=registry
        )
        self.info = Info("migrd_agent", "Version of this agent", registry=registry)

    def attempt_ended(self, attempt: Attempt, report: AttemptReport, took_s: float) -> None:
        """Count an attempt that ended."""
        kind = attempt.command.kind
        self.attempts.labels(kind, report.outcome.value).inc()
        self.attempt_seconds.labels(kind).observe(took_s)
        progress = report.result.progress
        if isinstance(attempt.command, MigrateDomain) and progress is not None:
            self.migration_bytes.inc(progress.memory_processed_bytes)
            if progress.downtime_ms is not None:
                self.downtime_seconds.observe(progress.downtime_ms / 1000)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)


class AgentCollector(Collector):
    """What is true at the moment of the scrape."""

    def __init__(
        self,
        *,
        report: Callable[[], HostReport | None],
        trouble: Callable[[], str | None],
        migrations: Callable[[], tuple[tuple[str, MigrationProgress | None], ...]],
        subscribers: Callable[[], int],
        epoch: Callable[[], int],
    ) -> None:
        self._report = report
        self._trouble = trouble
        self._migrations = migrations
        self._subscribers = subscribers
        self._epoch = epoch

    def describe(self) -> Iterable[Metric]:
        """Nothing: describing must not run before the agent is up."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        report = self._report()
        domains = report.domains if report else ()
        guests = GaugeMetricFamily("migrd_agent_guests", "Guests by state", labels=("state",))
        for state in DomainState:
            guests.add_metric((state.value,), sum(domain.state is state for domain in domains))
        yield guests
        running = self._migrations()
        seen = [progress for _, progress in running if progress is not None]
        dual = sum(volume.dual_primary_allowed for volume in (report.volumes if report else ()))
        for name, text, value in (
            ("libvirt_up", "1 if libvirt can be used", self._trouble() is None),
            ("migrations_running", "Migrations leaving this host", len(running)),
            (
                "migration_remaining_bytes",
                "Memory still to send, all running migrations",
                sum(each.memory_remaining_bytes for each in seen),
            ),
            (
                "migration_processed_bytes",
                "Memory sent so far by the running migrations",
                sum(each.memory_processed_bytes for each in seen),
            ),
            (
                "migration_dirty_rate_bytes_per_second",
                "Memory dirtied by the guests that migrate",
                sum(each.dirty_rate_bps for each in seen),
            ),
            ("dual_primary_volumes", "Volumes that allow two primaries: a window is open", dual),
            ("event_subscribers", "Open event streams", self._subscribers()),
            ("epoch", "Highest epoch obeyed", self._epoch()),
        ):
            yield GaugeMetricFamily(f"migrd_agent_{name}", text, value=float(value))
