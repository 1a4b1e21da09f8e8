"""What an error of a libvirt call proves: migrate, move a definition, start. Pure; numbers from virterror.h.

Its error cannot be trusted: a guest can be running on the target although the source reports a failure
(Nova learned that). Only errors that libvirt raises before the first byte of memory is sent are believed,
and only if the guest is then still seen running here, without a job. Everything else is Unknown: the daemon
looks at both hosts.
"""

from __future__ import annotations

from agents.protocol import DomainState
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown

NO_SUPPORT = 3
OPERATION_FAILED = 9
AUTH_FAILED = 45
NO_SECRET = 66
CONFIG_UNSUPPORTED = 67
MIGRATE_UNSAFE = 81
ARGUMENT_UNSUPPORTED = 74
AUTH_CANCELLED = 79
OPERATION_UNSUPPORTED = 84
CPU_INCOMPATIBLE = 91
AUTH_UNAVAILABLE = 94
INVALID_ARG = 8
OPERATION_INVALID = 55

# Raised while the migration is checked and prepared on either side, before QEMU is told to migrate.
_PRECONDITION = (
    NO_SECRET,  # the target's QEMU is not even started without its disk's password
    NO_SUPPORT,
    CONFIG_UNSUPPORTED,
    MIGRATE_UNSAFE,
    OPERATION_UNSUPPORTED,
    CPU_INCOMPATIBLE,
    AUTH_FAILED,
    AUTH_CANCELLED,
    AUTH_UNAVAILABLE,
    INVALID_ARG,
    ARGUMENT_UNSUPPORTED,
)
# doPeer2PeerMigrate in libvirt's qemu_migration.c: the connection to the target's libvirtd was not made.
_NO_TARGET = "failed to connect to remote libvirt uri"


def verdict(code: int, message: str, state_after: DomainState, job_after: bool) -> OutcomeError:
    """The outcome to report for a migrate call that ended with an error."""
    text = f"libvirt: {message}"
    stayed = state_after in (DomainState.RUNNING, DomainState.BLOCKED) and not job_after
    if stayed and code in _PRECONDITION:
        return Refused(text)
    if stayed and code == OPERATION_FAILED and _NO_TARGET in message.lower():
        return Retryable(text)
    return Unknown(text, f"on this host the guest is {state_after}{' with a job' if job_after else ''}")


def move_verdict(code: int, message: str, state_after: DomainState) -> OutcomeError:
    """The outcome to report for an offline migration that ended with an error.

    Only "the target was not reached", with the definition still here, is known to have done nothing. After
    any other error it may be on both hosts: the target defines first.
    """
    text = f"libvirt: {message}"
    if state_after is DomainState.SHUTOFF and code == OPERATION_FAILED and _NO_TARGET in message.lower():
        return Retryable(text)
    return Unknown(text, f"on this host the guest is {state_after}")


def start_verdict(_code: int, message: str, state_after: DomainState) -> OutcomeError:
    """The outcome to report for a start that ended with an error: libvirt ends the QEMU before it says so."""
    text = f"libvirt: {message}"
    if state_after is DomainState.SHUTOFF:
        return Failed(text)
    return Unknown(text, f"on this host the guest is {state_after}")
