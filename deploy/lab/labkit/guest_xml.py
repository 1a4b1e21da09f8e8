"""The libvirt domain of a lab guest. Pure: values in, XML out."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from labkit.layout import GUEST_BRIDGE, Layout

ACK_PORT = 7000  # UDP port of the observer
DEFAULT_MEMORY_MIB = 128
MIN_MEMORY_MIB = 96  # kernel, initramfs and a small dirty buffer; below that the guest dies in its boot
DEFAULT_RECORDS_PER_S = 20
MAX_DIRTY_MIB_PER_S = 4096
# What costs most under TCG: page-table isolation flushes the TLB of QEMU at every entry into the kernel, and
# every look at a clock that is not the TSC leaves the translated code.
CHEAP = ("mitigations=off", "tsc=reliable", "clocksource=tsc", "no_timer_check", "nowatchdog", "audit=0")
ODD_MEMORY_KIB = 8  # see domain_xml: the smallest step that QEMU allows


@dataclass(frozen=True)
class Guest:
    """What `guest add` decides about a guest."""

    name: str
    number: int
    uuid: str
    memory_mib: int
    dirty_mib_per_s: int
    records_per_s: int
    record_size: int = 512


def observer_mac(layout: Layout) -> str:
    """MAC that the observer's bridge is given, so that guests can hold a fixed neighbour entry for it."""
    return f"02:4d:{77 + layout.slot:02x}:00:02:fe"


def command_line(layout: Layout, guest: Guest) -> str:
    """Kernel command line; `migrd.*` words are read by the guest's /init."""
    words = {
        "guest": guest.name,
        "ip": f"{layout.guest_address(guest.number)}/24",
        "observer": layout.gateway("guests"),
        "observer_mac": observer_mac(layout),
        "port": str(ACK_PORT),
        "record": str(guest.record_size),
        "rate": str(guest.records_per_s),
        "dirty": str(guest.dirty_mib_per_s),
        # A quarter of the memory is rewritten round and round: what a migration has to send again.
        "dirty_buffer": str(max(1, guest.memory_mib // 4)),
    }
    return " ".join(
        [
            "console=ttyS0",
            "quiet",
            "panic=5",
            *CHEAP,
            *(f"migrd.{key}={value}" for key, value in words.items()),
        ]
    )


def domain_xml(layout: Layout, guest: Guest, disk_xml: str, kernel: str, initramfs: str) -> str:
    """A domain that migrates under TCG: fixed CPU model, fixed machine version, no local device.

    The guest gets 8 KiB more than a whole number of MiB, behind libvirt's back. QEMU before 9.0 forgets
    under TCG to re-arm its dirty tracking when the size is a multiple of 64 pages (its fast path over whole
    words of the bitmap; QEMU's commit "physmem: Fix migration dirty bitmap coherency with TCG memory
    access"), so that a live migration loses pages and guests die. An odd size takes the slow, right path.
    """
    name = escape(guest.name)
    odd_kib = guest.memory_mib * 1024 + ODD_MEMORY_KIB
    return f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{guest.uuid}</uuid>
  <memory unit='MiB'>{guest.memory_mib}</memory>
  <currentMemory unit='MiB'>{guest.memory_mib}</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>{escape(kernel)}</kernel>
    <initrd>{escape(initramfs)}</initrd>
    <cmdline>{escape(command_line(layout, guest))}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {disk_xml}
    <interface type='bridge'>
      <mac address={quoteattr(layout.guest_mac(guest.number))}/>
      <source bridge='{GUEST_BRIDGE}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path='{console_path(guest.name)}' append='on'/>
      <target port='0'/>
    </serial>
    <video><model type='none'/></video>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-object'/>
    <qemu:arg value='memory-backend-ram,id=lab.ram,size={odd_kib}k'/>
    <qemu:arg value='-m'/>
    <qemu:arg value='{odd_kib}k'/>
    <qemu:arg value='-machine'/>
    <qemu:arg value='memory-backend=lab.ram'/>
  </qemu:commandline>
</domain>
"""


def console_path(guest: str) -> str:
    """Where a guest's serial console is written, on whichever host it runs."""
    return f"/var/log/libvirt/qemu/{guest}-console.log"
