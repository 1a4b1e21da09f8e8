"""The migrate call itself, and the end of what it leaves behind. Blocking, for use in a Link's thread.

Peer-to-peer, because such a migration goes on when this agent dies. Never VIR_MIGRATE_UNSAFE (an operator's
word), never TUNNELLED (a copy through two libvirtds), never a disk copy: the disks are handed over by the
storage drivers.
"""

from __future__ import annotations

from typing import Any

import libvirt

from agents.hypervisor import libvirt_reads, states
from agents.hypervisor.words import MigrateRequest
from agents.protocol import DomainState
from storage.errors import Refused

MIB = 1 << 20


def migrate(connection: Any, request: MigrateRequest) -> None:
    """Returns when libvirt reports success. Raises libvirtError; Refused: not here, or unwanted by now."""
    try:
        domain = connection.lookupByUUIDString(request.uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise Refused(f"domain {request.uuid} is not on this host") from None
        raise
    persistent = bool(domain.isPersistent())
    if request.unwanted():
        raise Refused("aborted before it began")
    domain.migrateToURI3(request.target_uri, parameters(request), flags(persistent=persistent))


def destroy_outgoing(connection: Any, uuid: str) -> None:
    """What the Confirm of libvirt's protocol would do, had the target's answer come through.

    Destroying is the one change that libvirt takes while it waits for that answer; the definition can be
    removed only after the migrate call has ended (seen on 9.0: virDomainUndefine waits for it).
    """
    domain = libvirt_reads.find(connection, uuid)
    if domain is None:
        return
    # In the same thread: the order may come late, when libvirt has let the guest run here again (I5).
    found = libvirt_reads.facts(connection, uuid)
    if not found.state.has_process:
        return
    if (found.state, found.reason) != (DomainState.PAUSED, "migration"):
        raise Refused(f"domain {uuid} is {found.state} ({found.reason}) by now: it is not destroyed")
    if not states.is_outgoing(libvirt_reads.job_stats(domain) or {}):
        raise Refused(f"domain {uuid}: libvirt does not say that a migration leaves: it is not destroyed")
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            raise  # else it has ended meanwhile, e.g. by an earlier order that took long


def parameters(request: MigrateRequest) -> dict[str, str | int]:
    """virDomainMigrateToURI3's typed parameters. libvirt takes the bandwidth in MiB/s, at least 1."""
    found: dict[str, str | int] = {libvirt.VIR_MIGRATE_PARAM_URI: request.target_address}
    if request.bandwidth_bps is not None:
        found[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = max(1, request.bandwidth_bps // MIB)
    return found


def flags(*, persistent: bool) -> int:
    """ABORT_ON_ERROR: a guest that stops on an IO error while it moves stays where its error can be seen.

    A transient guest stays transient: there is no definition to take along or to remove.
    """
    found = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    if persistent:
        found |= libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    return int(found)
