"""Can this host's hypervisor provide a guest's machine and CPU? Blocking, for use in a Link's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libvirt

from agents import cpu_question
from agents.cpu_question import CpuQuestion
from agents.hypervisor.libvirt_reads import CANNOT

_NOT_POSSIBLE = (
    *CANNOT,
    libvirt.VIR_ERR_CPU_INCOMPATIBLE,
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_INTERNAL_ERROR,
)


def cpu_reasons(connection: Any, question: str) -> tuple[str, ...]:
    """Why not; empty when it can. `question`: see agents.cpu_question. Raises libvirtError when not known."""
    asked = cpu_question.read(question)
    if asked is None:
        return ("the question about the guest's CPU cannot be read",)
    reason = _machine(connection, asked)
    if reason is None and asked.host_cpu:
        reason = _same_host_cpu(connection, asked.host_cpu)
    elif reason is None and asked.cpu:
        reason = _cpu(connection, asked)
    return () if reason is None else (reason,)


def _machine(connection: Any, asked: CpuQuestion) -> str | None:
    _, error = _ask(lambda: connection.getDomainCapabilities(None, asked.arch, asked.machine, asked.kind))
    return None if error is None else f"this host cannot run such a machine: {error}"


def _cpu(connection: Any, asked: CpuQuestion) -> str | None:
    answer, error = _ask(
        lambda: connection.compareHypervisorCPU(
            None, asked.arch, asked.machine, asked.kind, asked.cpu,
            libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )
    )  # fmt: skip
    if error is not None:
        return f"the guest's CPU does not run here: {error}"
    if answer in (libvirt.VIR_CPU_COMPARE_IDENTICAL, libvirt.VIR_CPU_COMPARE_SUPERSET):
        return None
    return "the guest's CPU does not run here: this host's CPU lacks features of it"


def _same_host_cpu(connection: Any, host_cpu: str) -> str | None:
    """A guest that sees its host's CPU as it is can only move between equal ones."""
    answer, error = _ask(lambda: connection.compareCPU(host_cpu, 0))
    if error is not None:
        return f"the hosts' CPUs cannot be compared: {error}"
    if answer == libvirt.VIR_CPU_COMPARE_IDENTICAL:
        return None
    return (
        "the guest sees its host's own CPU (host-passthrough or maximum), and this host's CPU is not"
        " identical to it: give the guest a named model or host-model to make it movable"
    )


def _ask(question: Callable[[], object]) -> tuple[object, libvirt.libvirtError | None]:
    """The answer, or an error that is itself an answer: not possible here. Other errors are raised."""
    try:
        return question(), None
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NOT_POSSIBLE:
            return None, error
        raise
