"""Moving a definition, and starting a domain. Blocking, for use in a Link's thread.

Offline migration (libvirt 9.0, qemu_migration.c): no QEMU is started and no memory sent. The target's
libvirtd persists the definition in its Finish phase, without autostart; after that the source's Confirm phase
removes its own. So a broken connection leaves the definition here or on both hosts, never on none; a second
call then moves it over the one that is there (seen with two libvirtds of 9.0.0).
VIR_MIGRATE_OFFLINE needs PERSIST_DEST; on a *running* domain it would copy the definition and leave the guest
running, which is why the state is looked at in the very thread that calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libvirt

from agents.hypervisor import libvirt_reads
from agents.protocol import DomainState
from storage.errors import Refused

FLAGS = int(
    libvirt.VIR_MIGRATE_OFFLINE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
)
NOBODYS_METADATA = "urn:migrd:settle"


def move_definition(
    connection: Any, uuid: str, target_uri: str, target_address: str, *, unwanted: Callable[[], bool]
) -> None:
    """Returns when libvirt reports success. Raises libvirtError; Refused: not shut off, or unwanted."""
    domain = _shut_off(connection, uuid, unwanted)
    if not domain.isPersistent():
        raise Refused(f"domain {uuid} is transient: it has no definition to move")
    # Without a URI the target would name itself, and refuses when its own name resolves to localhost.
    domain.migrateToURI3(target_uri, {libvirt.VIR_MIGRATE_PARAM_URI: target_address}, FLAGS)


def settle(connection: Any, uuid: str) -> None:
    """Take the domain's job lock, and give it back. Raises libvirtError: no such domain, or a timeout (30 s).

    An offline migration holds that lock from its first to its last phase, and no query shows it (a domain
    that is shut off has no job information). Removing metadata that nobody has set waits for the lock, looks
    whether the domain is still defined, and leaves its definition as it is (seen with libvirtd 9.0.0: "cannot
    acquire state change lock (held by monitor=remoteDispatchDomainMigratePerform3Params)").
    """
    connection.lookupByUUIDString(uuid).setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, NOBODYS_METADATA, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    )


def start(connection: Any, uuid: str, *, unwanted: Callable[[], bool]) -> None:
    """Returns when libvirt has started it. Raises libvirtError; Refused: not shut off, or unwanted by now."""
    _shut_off(connection, uuid, unwanted).createWithFlags(0)


def _shut_off(connection: Any, uuid: str, unwanted: Callable[[], bool]) -> Any:
    """The domain, right before it is acted on. `unwanted`: whoever asked has given up, and says "unknown"."""
    domain = libvirt_reads.find(connection, uuid)
    if domain is None:
        raise Refused(f"domain {uuid} is not on this host")
    found = libvirt_reads.facts(connection, uuid)
    if found.state is not DomainState.SHUTOFF:
        raise Refused(f"domain {uuid} is {found.state} ({found.reason}), not shut off")
    if unwanted():  # libvirtd was slow to answer these looks: by now the daemon has gone on from what it saw
        raise Refused(f"domain {uuid}: this came too late, and nothing was done")
    return domain
