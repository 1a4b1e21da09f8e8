"""The daemon's Prometheus metrics: prefix migrd_, base units, bounded labels. docs/METRICS.md lists each.

What is a state (hosts, guests, moves in flight) is read from the core at each scrape, so a guest that has
moved leaves no series behind. What happens (operations, downtime, requests) is counted as it happens.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.protocol import DomainState, MigrationProgress
from migrd.api.views import count_guests, count_hosts
from migrd.control import Control
from migrd.model import HostState
from migrd.operations import Operation, OperationKind, OperationState

MOVING = (OperationState.RUNNING, OperationState.CANCELLING)

_MOVE_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_DOWNTIME_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


# One series per move in flight each.
_OF_A_MOVE: tuple[tuple[str, str, Callable[[MigrationProgress], float]], ...] = (
    (
        "migrd_move_total_bytes",
        "Memory of the guest of a move in flight.",
        lambda progress: progress.memory_total_bytes,
    ),
    (
        "migrd_move_processed_bytes",
        "Memory of a move in flight copied so far, repeats included.",
        lambda progress: progress.memory_processed_bytes,
    ),
    (
        "migrd_move_remaining_bytes",
        "Memory of a move in flight still to be copied.",
        lambda progress: progress.memory_remaining_bytes,
    ),
    (
        "migrd_move_dirty_rate_bytes_per_second",
        "How fast the guest writes to its memory.",
        lambda progress: progress.dirty_rate_bps,
    ),
    (
        "migrd_move_bandwidth_bytes_per_second",
        "How fast memory is copied.",
        lambda progress: progress.bandwidth_bps,
    ),
)


class _Cluster(Collector):
    """Read from the core when Prometheus asks."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def collect(self) -> Iterator[Metric]:
        cluster = self._control.cluster()
        yield _states("migrd_hosts", "Hosts by state.", [s.value for s in HostState], count_hosts(cluster))
        yield _states(
            "migrd_guests",
            "Guests by state; a guest in flight counts once, where it runs.",
            [s.value for s in DomainState],
            count_guests(cluster),
        )
        ready = GaugeMetricFamily("migrd_ready", "1 when the journal is writable, no newer daemon is master.")
        ready.add_metric([], 1.0 if self._control.readiness().ready else 0.0)
        yield ready
        yield from _operations(self._control.open_operations())

    def describe(self) -> Iterator[Metric]:
        """Names only: registering must not ask a core that is still starting."""
        for name in (
            "migrd_hosts",
            "migrd_guests",
            "migrd_ready",
            "migrd_operations_open",
            "migrd_moves_in_flight",
            *(name for name, _, _ in _OF_A_MOVE),
        ):
            yield GaugeMetricFamily(name, "")


def _states(name: str, text: str, states: list[str], counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:  # zero too: an alert on a state that has no series never fires
        family.add_metric([state], counts.get(state, 0))
    return family


def _operations(unfinished: tuple[Operation, ...]) -> Iterator[Metric]:
    counts = Counts(operation.state.value for operation in unfinished)
    states = [state.value for state in OperationState if not state.ended]
    yield _states("migrd_operations_open", "Operations that have not ended, by state.", states, counts)
    moves = [
        operation
        for operation in unfinished
        if operation.kind is OperationKind.MIGRATE and operation.state in MOVING
    ]
    yield GaugeMetricFamily(
        "migrd_moves_in_flight", "Moves that are running or going back.", value=len(moves)
    )
    for name, text, read in _OF_A_MOVE:
        family = GaugeMetricFamily(name, text, labels=["guest", "source", "target"])
        for move in moves:
            if move.progress is not None:
                family.add_metric([move.guest, move.source, move.target], read(move.progress))
        yield family


class Metrics:
    """One registry. Implements migrd.ports.Observer and migrd.api.context.ApiObserver."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        Info("migrd_build", "Version of the daemon.", registry=registry).info({"version": version})
        self._operations = Counter(
            "migrd_operations",
            "Operations that ended or were parked, by kind and outcome.",
            ["kind", "outcome"],
            registry=registry,
        )
        self._duration = Histogram(
            "migrd_operation_duration_seconds",
            "From start to end, by kind.",
            ["kind"],
            buckets=_MOVE_S,
            registry=registry,
        )
        self._first_call = Histogram(
            "migrd_drain_first_move_seconds",
            "From a drain's request to its first migrate call.",
            buckets=_LAG_S,
            registry=registry,
        )
        self._downtime = Histogram(
            "migrd_move_downtime_seconds",
            "Downtime of moves as the hypervisor measured it.",
            buckets=_DOWNTIME_S,
            registry=registry,
        )
        self._parked: set[str] = set()  # of open operations, so it is bounded by them
        self._copied = Counter(
            "migrd_moves_started", "Moves that left the queue and began.", registry=registry
        )
        self._read_only = Gauge(
            "migrd_journal_read_only", "1 while the journal cannot be written.", registry=registry
        )
        self._requests = Counter(
            "migrd_api_requests",
            "Requests, by method, path template and status.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._request_s = Histogram(
            "migrd_api_request_duration_seconds",
            "Duration of requests, by path template; event streams excluded.",
            ["route"],
            buckets=_REQUEST_S,
            registry=registry,
        )
        self._failures = Counter(
            "migrd_api_auth_failures", "Requests without the right token.", ["reason"], registry=registry
        )
        self._streams = Gauge("migrd_api_event_streams", "Open event streams.", registry=registry)
        self._lag = Histogram(
            "migrd_event_loop_lag_seconds",
            "How much later than asked the event loop ran a timer.",
            buckets=_LAG_S,
            registry=registry,
        )
        for kind in OperationKind:
            for outcome in ("done", "undone", "failed", "parked"):
                self._operations.labels(kind.value, outcome)
        for reason in ("missing", "wrong"):
            self._failures.labels(reason)

    def follow(self, control: Control) -> None:
        """Add what is read from the core at each scrape. Once."""
        self.registry.register(_Cluster(control))

    def exposition(self) -> bytes:
        """The body of /metrics, text format 0.0.4."""
        return generate_latest(self.registry)

    def lag(self, seconds: float) -> None:
        self._lag.observe(max(0.0, seconds))

    # -- migrd.ports.Observer ----------------------------------------------------------------------

    def operation_changed(self, operation: Operation) -> None:
        """A parked operation is an outcome as well: somebody is needed. Counted once each time it parks."""
        if operation.state is not OperationState.PARKED:
            self._parked.discard(operation.id)
        elif operation.id not in self._parked:
            self._parked.add(operation.id)
            self._operations.labels(operation.kind.value, "parked").inc()

    def operation_ended(self, operation: Operation) -> None:
        self._parked.discard(operation.id)
        self._operations.labels(operation.kind.value, operation.state.value).inc()
        if operation.started_at_s is not None and operation.ended_at_s is not None:
            took_s = max(0.0, operation.ended_at_s - operation.started_at_s)
            self._duration.labels(operation.kind.value).observe(took_s)
        if operation.kind is OperationKind.DRAIN and operation.first_call_at_s is not None:
            self._first_call.observe(max(0.0, operation.first_call_at_s - operation.requested_at_s))

    def move_started(self, operation: Operation) -> None:
        self._copied.inc()

    def move_progress(self, operation: Operation, progress: MigrationProgress) -> None:
        """Read at each scrape instead: see _operations."""

    def move_ended(self, operation: Operation) -> None:
        """Counted in operation_ended."""

    def downtime(self, seconds: float) -> None:
        self._downtime.observe(max(0.0, seconds))

    def journal_read_only(self, reason: str) -> None:
        self._read_only.set(1 if reason else 0)

    # -- migrd.api.context.ApiObserver -------------------------------------------------------------

    def request(self, method: str, route: str, status: int, duration_s: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        if route != "/v1/events":
            self._request_s.labels(route).observe(duration_s)

    def auth_failure(self, reason: str) -> None:
        self._failures.labels(reason).inc()

    def streams(self, open_now: int) -> None:
        self._streams.set(open_now)
