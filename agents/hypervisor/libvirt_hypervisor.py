"""LibvirtHypervisor: the `Hypervisor` over libvirt. Every call has a deadline; nothing blocks the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import libvirt

from agents.hypervisor import eventloop, libvirt_cold, libvirt_cpu, libvirt_migrate, libvirt_reads, states
from agents.hypervisor.libvirt_link import Link, Lost
from agents.hypervisor.verdicts import move_verdict, start_verdict, verdict
from agents.hypervisor.words import Changes, DomainFacts, HypervisorReport, Job, MigrateRequest
from agents.protocol import DomainState, MigrationProgress
from storage.errors import OutcomeError, Refused, Retryable, Unknown

T = TypeVar("T")

QUERY_SLOTS = 4  # below libvirtd's max_client_requests of 5
STATUS_SLOTS = 2
COLD_DEADLINE_S = 60.0  # two libvirtds talking; or a QEMU and its devices coming up
MIGRATE_DEADLINE_S = 7 * 24 * 3600.0  # the attempt runner aborts long before
LAST_JOBS_MAX = 256
RECONNECT_POLL_S = 1.0
AFTER_ERROR_TRIES = 3


class LibvirtHypervisor:
    """`run()` must run beside it: it connects, reconnects, and raises when only a new process helps."""

    def __init__(self, uri: str, *, call_deadline_s: float = 10.0) -> None:
        self.changes = Changes()
        self._uri = uri
        self._deadline_s = call_deadline_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._query = Link(
            uri, "libvirt", slots=QUERY_SLOTS, opened=self._subscribe, changed=self._connection_changed
        )
        self._status = Link(uri, "libvirt-status", slots=STATUS_SLOTS)
        self._abort = Link(uri, "libvirt-abort", slots=1)
        # Beside the status link, whose slots the job statistics of a QEMU that is stuck can take.
        self._state = Link(uri, "libvirt-state", slots=1)
        self._cache = libvirt_reads.Cache()
        self._reporting = asyncio.Lock()
        self._job_completed = asyncio.Event()
        self._last_jobs: OrderedDict[str, MigrationProgress] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def trouble(self) -> str | None:
        """Why libvirt cannot be used now."""
        return self._query.trouble

    async def run(self) -> None:
        """Keep the connection. Raises RuntimeError when threads hang for good or libvirt's loop died."""
        self._loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(Retryable):  # `trouble` says why; the back-off is inside
                await self._query.ensure()
            await asyncio.sleep(RECONNECT_POLL_S)
            if not eventloop.alive() and self._query.trouble is None:
                raise RuntimeError("libvirt's event loop thread ended")
            if any(link.exhausted for link in (self._query, self._status, self._abort, self._state)):
                raise RuntimeError("too many libvirt calls hang for ever; the agent has to start anew")

    async def close(self) -> None:
        """Close the connections; running peer-to-peer migrations go on without this process."""
        for link in (self._query, self._status, self._abort, self._state):
            await link.close()
        await asyncio.gather(*self._closing)

    async def report(self) -> HypervisorReport:
        """See words.Hypervisor."""
        async with self._reporting:
            cache = self._cache
            return await self._read(lambda connection: libvirt_reads.report(connection, cache))

    async def facts(self, uuid: str) -> DomainFacts:
        """See words.Hypervisor."""
        return await self._read(lambda connection: libvirt_reads.facts(connection, uuid))

    async def handing_over(self, uuid: str) -> bool:
        """See words.Hypervisor."""
        return await self._read(
            lambda connection: libvirt_reads.handing_over(connection, uuid), link=self._state
        )

    async def cpu_reasons(self, question: str) -> tuple[str, ...]:
        """See words.Hypervisor."""
        return await self._read(lambda connection: libvirt_cpu.cpu_reasons(connection, question))

    async def migrate(self, request: MigrateRequest) -> None:
        """See words.Hypervisor. One connection per migration: see libvirt_link."""
        link = Link(self._uri, "libvirt-migrate", slots=1)
        self._last_jobs.pop(request.uuid, None)
        try:
            await link.call(
                lambda connection: libvirt_migrate.migrate(connection, request), deadline_s=MIGRATE_DEADLINE_S
            )
        except Lost as error:
            raise Unknown(f"the connection to libvirt broke during the migration: {error}") from None
        except libvirt.libvirtError as error:
            after = await self._after_error(request.uuid)
            raise verdict(error.get_error_code(), str(error), after.state, after.job) from None
        finally:
            # Nobody waits for it: the outcome is known. It ends by itself, within the deadline of a close.
            closing = asyncio.create_task(link.close(), name="close a migration's connection")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def job(self, uuid: str) -> Job | None:
        """See words.Hypervisor."""

        def look(connection: Any) -> Job | None:
            domain = libvirt_reads.find(connection, uuid)
            stats = None if domain is None else libvirt_reads.job_stats(domain)
            if stats is None:
                return None
            return Job(
                outgoing=states.is_outgoing(stats),
                foreign=states.is_foreign(stats),
                progress=states.progress_of(stats),
            )

        return await self._read(look, link=self._status)

    async def last_job(self, uuid: str, *, wait_s: float) -> MigrationProgress | None:
        """See words.Hypervisor. From the JOB_COMPLETED event: the source's domain is gone by then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while uuid not in self._last_jobs:
                    await self._job_completed.wait()
        return self._last_jobs.get(uuid)

    async def abort(self, uuid: str) -> None:
        """See words.Hypervisor."""

        def abort(connection: Any) -> None:
            domain = libvirt_reads.find(connection, uuid)
            if domain is not None:
                domain.abortJob()

        try:
            await self._change(abort, link=self._abort)
        except Refused:
            return  # OPERATION_INVALID: no job is active
        except Unknown as error:
            raise Retryable(*error.reasons) from None

    async def set_downtime(self, uuid: str, downtime_limit_ms: int) -> None:
        """See words.Hypervisor."""

        def change(connection: Any) -> None:
            connection.lookupByUUIDString(uuid).migrateSetMaxDowntime(downtime_limit_ms, 0)

        try:
            await self._change(change, link=self._status)
        except Unknown as error:
            raise Retryable(*error.reasons) from None

    async def destroy_incoming(self, uuid: str) -> None:
        """See words.Hypervisor."""

        def destroy(connection: Any) -> None:
            domain = libvirt_reads.find(connection, uuid)
            if domain is None:
                return
            # Once more, in the same thread: this may come late, long after the look that led here (I5).
            found = libvirt_reads.facts(connection, uuid)
            if found.state not in (DomainState.PAUSED_INCOMING, DomainState.SHUTOFF, DomainState.ABSENT):
                raise Refused(f"domain {uuid} is {found.state} ({found.reason}) by now: it is not destroyed")
            if found.state is DomainState.PAUSED_INCOMING:
                domain.destroy()

        await self._change(destroy)

    async def destroy_outgoing(self, uuid: str) -> None:
        """See words.Hypervisor. On a connection of its own: the other ones may wait for a stuck migration."""
        link = Link(self._uri, "libvirt-destroy", slots=1)
        try:
            await self._change(
                lambda connection: libvirt_migrate.destroy_outgoing(connection, uuid), link=link
            )
        finally:
            await link.close()

    async def undefine(self, uuid: str) -> None:
        """See words.Hypervisor."""

        def undefine(connection: Any) -> None:
            domain = libvirt_reads.find(connection, uuid)
            if domain is None:
                return
            if domain.isActive():  # in the same thread: libvirt would make it a transient one
                raise Refused(f"domain {uuid} has a QEMU by now: its definition stays")
            try:
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_SUPPORT):
                    raise
                domain.undefineFlags(0)  # a hypervisor without NVRAM does not know the flag

        await self._change(undefine)

    async def shutdown(self, uuid: str) -> None:
        """See words.Hypervisor."""

        def shutdown(connection: Any) -> None:
            connection.lookupByUUIDString(uuid).shutdown()

        await self._change(shutdown)

    async def move_definition(self, uuid: str, target_uri: str, target_address: str) -> None:
        """See words.Hypervisor."""
        await self._cold(
            uuid,
            lambda connection, unwanted: libvirt_cold.move_definition(
                connection, uuid, target_uri, target_address, unwanted=unwanted
            ),
            move_verdict,
        )

    async def settle(self, uuid: str) -> None:
        """See words.Hypervisor. On a connection of its own: it waits for whatever holds the lock."""
        link = Link(self._uri, "libvirt-settle", slots=1)
        try:
            await self._read(
                lambda connection: libvirt_cold.settle(connection, uuid),
                link=link,
                deadline_s=COLD_DEADLINE_S,
            )
        finally:
            await link.close()

    async def start(self, uuid: str) -> None:
        """See words.Hypervisor."""
        await self._cold(
            uuid,
            lambda connection, unwanted: libvirt_cold.start(connection, uuid, unwanted=unwanted),
            start_verdict,
        )

    # -- inside ----------------------------------------------------------------------------------

    async def _cold(
        self,
        uuid: str,
        function: Callable[[Any, Callable[[], bool]], None],
        judge: Callable[[int, str, DomainState], OutcomeError],
    ) -> None:
        """On a connection of its own: it may take long, and must not hold up reads.

        A thread that is past its deadline goes on: it is told that nobody waits for it any more.
        """
        link = Link(self._uri, "libvirt-cold", slots=1)
        given_up = threading.Event()
        try:
            await link.call(
                lambda connection: function(connection, given_up.is_set), deadline_s=COLD_DEADLINE_S
            )
        except Lost as error:
            raise Unknown(f"the connection to libvirt broke: {error}") from None
        except libvirt.libvirtError as error:
            after = await self._after_error(uuid)
            raise judge(error.get_error_code(), str(error), after.state) from None
        finally:
            given_up.set()
            await link.close()

    async def _read(
        self, function: Callable[[Any], T], *, link: Link | None = None, deadline_s: float | None = None
    ) -> T:
        try:
            return await (link or self._query).call(function, deadline_s=deadline_s or self._deadline_s)
        except (Lost, libvirt.libvirtError) as error:
            raise Retryable(f"libvirt: {error}") from None
        except Unknown as error:  # a read that did not answer has changed nothing
            raise Retryable(*error.reasons) from None

    async def _change(self, function: Callable[[Any], None], *, link: Link | None = None) -> None:
        try:
            await (link or self._query).call(function, deadline_s=self._deadline_s)
        except Lost as error:
            raise Unknown(f"the connection to libvirt broke: {error}") from None
        except libvirt.libvirtError as error:
            if error.get_error_code() in (
                libvirt.VIR_ERR_OPERATION_INVALID,
                libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
                libvirt.VIR_ERR_NO_DOMAIN,
                libvirt.VIR_ERR_INVALID_ARG,
                libvirt.VIR_ERR_NO_SUPPORT,
            ):
                raise Refused(f"libvirt: {error}") from None
            raise Unknown(f"libvirt: {error}") from None

    async def _after_error(self, uuid: str) -> DomainFacts:
        """The guest here after a failed migrate call; UNKNOWN when it cannot be seen."""
        for _ in range(AFTER_ERROR_TRIES):
            with contextlib.suppress(Retryable):
                return await self._read(
                    lambda connection: libvirt_reads.facts(connection, uuid), link=self._status
                )
            await asyncio.sleep(1.0)
        return DomainFacts(uuid=uuid, state=DomainState.UNKNOWN, reason="unknown", job=True)

    # -- events: the callbacks run in libvirt's thread ----------------------------------------------

    def _subscribe(self, connection: Any) -> None:
        """In the opening thread. A driver without one of the events loses that event, not the connection."""
        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, self._on_event),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._on_event),
            (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._on_event),
            (libvirt.VIR_DOMAIN_EVENT_ID_DISK_CHANGE, self._on_event),
            (libvirt.VIR_DOMAIN_EVENT_ID_TRAY_CHANGE, self._on_event),
            (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, self._on_job_completed),
        ):
            with contextlib.suppress(libvirt.libvirtError):
                connection.domainEventRegisterAny(None, event, callback, None)

    def _on_event(self, _connection: object, domain: Any, *_details: object) -> None:
        self._hand_over(self._changed, domain.UUIDString())

    def _on_job_completed(
        self, _connection: object, domain: Any, stats: Mapping[str, object], _opaque: object
    ) -> None:
        self._hand_over(self._completed, domain.UUIDString(), dict(stats))

    def _hand_over(self, function: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the asyncio loop has ended
                self._loop.call_soon_threadsafe(function, *arguments)

    # -- in the asyncio loop -------------------------------------------------------------------------

    def _changed(self, uuid: str) -> None:
        self._cache.xml.pop(uuid, None)
        self.changes.tell(uuid)

    def _completed(self, uuid: str, stats: Mapping[str, object]) -> None:
        if stats.get("operation") == states.OPERATION_MIGRATION_OUT:
            self._last_jobs[uuid] = states.progress_of(stats, final=True)
            while len(self._last_jobs) > LAST_JOBS_MAX:
                self._last_jobs.popitem(last=False)
            self._job_completed.set()  # wakes those who wait now; the next ones wait for the next event
            self._job_completed = asyncio.Event()
        self.changes.tell(uuid)

    def _connection_changed(self) -> None:
        self._cache = libvirt_reads.Cache()  # another libvirtd may be behind the new connection
        self.changes.tell(None)
