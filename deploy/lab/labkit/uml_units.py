"""systemd inside a UML host: the units that run, and the ones that would only cost boot time. Pure.

Every process costs a UML host tens of milliseconds, so a boot of a few seconds is a short list of units.
"""

from __future__ import annotations

from labkit.layout import STORAGE_HOST, Layout
from labkit.libvirt_conf import RESERVED_PORTS

MASKED = (
    "apparmor.service",
    "console-getty.service",
    "cryptsetup.target",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "e2scrub_reap.service",
    "getty.target",
    "dbus.service",  # nothing at boot needs it, and unmasked it would be started for nobody
    "dbus.socket",
    "getty-static.service",
    "integritysetup.target",
    "kmod-static-nodes.service",
    "open-iscsi.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-initctl.socket",
    "systemd-journal-flush.service",
    "systemd-journald-audit.socket",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-machined.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-repart.service",
    "systemd-sysusers.service",
    "systemd-sysctl.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-user-sessions.service",
    "veritysetup.target",
)

_COMMON = ("lab-network.service", "ssh.service")
_HOST = ("iscsid.service", "lab-drbd.service", "libvirtd.service")
_STORAGE = ("rtslib-fb-targetctl.service",)

# One process for both, since each costs a UML host tens of milliseconds.
_NETWORK = f"""[Unit]
Description=Lab networks: management, storage, guests
DefaultDependencies=no
After=systemd-modules-load.service
Wants=network.target network-online.target
Before=network.target network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo {RESERVED_PORTS} >/proc/sys/net/ipv4/ip_local_reserved_ports; \\
 exec /usr/sbin/ip -batch /etc/lab/network.batch'

[Install]
WantedBy=multi-user.target
"""

_SSH = """[Unit]
Description=OpenBSD Secure Shell server
After=network.target

[Service]
ExecStart=/usr/sbin/sshd -D
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
Restart=on-failure
RuntimeDirectory=sshd
"""

_LIBVIRTD = """[Unit]
Description=Virtualization daemon
After=network.target local-fs.target iscsid.service lab-drbd.service
Documentation=man:libvirtd(8)

[Service]
Type=notify
ExecStart=/usr/sbin/libvirtd --listen
ExecReload=/bin/kill -HUP $MAINPID
# Guests outlive their daemon, as in the distribution's own unit.
KillMode=process
Restart=on-failure
RestartSec=2
LimitNOFILE=8192
LimitMEMLOCK=infinity
TasksMax=infinity
"""

_ISCSID = """[Unit]
Description=iSCSI initiator daemon (iscsid)
After=network.target systemd-modules-load.service

[Service]
Type=simple
ExecStart=/sbin/iscsid -f
Restart=on-failure
"""

# `drbd.service` of the distribution waits for every peer, for ever by default: a host whose peer is off
# would never finish its boot. Here the resources come up as Secondary and connect when the peer does.
_DRBD = """[Unit]
Description=DRBD resources of the lab (Secondary, connecting in the background)
After=network.target systemd-modules-load.service systemd-udevd.service
ConditionPathExistsGlob=/etc/drbd.d/*.res

[Service]
Type=oneshot
RemainAfterExit=yes
# A resource that was removed while this host was off: its disk is gone, or is another guest's by now.
ExecStartPre=/bin/sh -c 'for word in $(cat /proc/cmdline); do case $word in lab.gone=*) \
    for name in $(echo "$${word#lab.gone=}" | tr , " "); do rm -f "/etc/drbd.d/$name.res"; done;; esac; done'
ExecStart=/bin/sh -c 'set -- /etc/drbd.d/*.res; [ -e "$1" ] || exit 0; exec drbdadm up all'
"""

# Only what the lab's hosts have: the rest would start a worker for each device, 10 s together.
_TRIGGER = """[Service]
ExecStart=
ExecStart=-/usr/bin/udevadm trigger --type=devices --action=add --subsystem-match=block --subsystem-match=net
"""

_TMPFILES = """[Service]
ExecStart=
ExecStart=/usr/bin/systemd-tmpfiles --create --boot --prefix=/run --prefix=/var/log
"""

_JOURNALD = """[Journal]
Storage=persistent
SystemMaxUse=32M
ReadKMsg=yes
Audit=no
"""

_MANAGER = """[Manager]
DefaultTimeoutStartSec=60s
DefaultTimeoutStopSec=15s
CrashShell=no
"""


def files(layout: Layout, host: str) -> dict[str, str]:
    """Unit and configuration files of systemd: path -> content."""
    del layout
    system = "etc/systemd/system"
    found = {
        f"{system}/lab-network.service": _NETWORK,
        f"{system}/ssh.service": _SSH,
        f"{system}/systemd-udev-trigger.service.d/lab.conf": _TRIGGER,
        f"{system}/systemd-tmpfiles-setup.service.d/lab.conf": _TMPFILES,
        "etc/systemd/journald.conf": _JOURNALD,
        "etc/systemd/system.conf": _MANAGER,
    }
    if host != STORAGE_HOST:
        found[f"{system}/libvirtd.service"] = _LIBVIRTD
        found[f"{system}/iscsid.service"] = _ISCSID
        found[f"{system}/lab-drbd.service"] = _DRBD
    return found


def links(host: str) -> dict[str, str]:
    """Symlinks: what is masked, what multi-user.target wants, and multi-user as the default."""
    system = "etc/systemd/system"
    found = {f"{system}/{unit}": "/dev/null" for unit in MASKED}
    found[f"{system}/default.target"] = "/lib/systemd/system/multi-user.target"
    for unit in (*_COMMON, *(_STORAGE if host == STORAGE_HOST else _HOST)):
        home = "/lib/systemd/system" if unit in _STORAGE else "/etc/systemd/system"
        found[f"{system}/multi-user.target.wants/{unit}"] = f"{home}/{unit}"
    return found
