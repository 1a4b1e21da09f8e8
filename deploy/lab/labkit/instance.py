"""An instance of the lab from nothing to ready, and back to nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from labkit import bmc, mounts, needs, netns_host, process, state, switch, uml_image
from labkit import layout as names
from labkit.hosts import HostKind
from labkit.layout import Layout
from labkit.sh import LabError, LabRefusedError, must, run
from labkit.state import Lab
from labkit.uml_host import UmlHost, ssh_dir

READY_DEADLINE_S = 180.0
_UNMOUNT_DEADLINE_S = 5.0  # the last process of a killed machine lets go of its memory
_MEMORY_SLACK_MIB = 64  # a UML kernel takes a little more than its mem=

Report = Callable[[str], None]


def up(name: str, hosts: int, kind: HostKind, memory_mib: int, report: Report) -> Lab:
    """Make the instance and wait until every host is ready.

    Raises LabRefusedError if it is already up, LabError if a host does not get ready; a half-made
    instance stays for inspection (logs, consoles) until `down`.
    """
    lab = _reserve(name, hosts, kind, memory_mib)
    layout = lab.layout
    report(f"lab {name}: {len(layout.machines)} {kind} hosts on {layout.subnet('management')}")
    _mount_memory(layout)
    switch.up(layout)
    if kind == "netns":
        netns_host.up(lab)
        _start_bmcs(layout)
        return lab
    _keys(lab)
    _build_images(lab)
    _known_hosts(lab)
    started = time.monotonic()
    for host in layout.machines:
        switch.add_taps(layout, host)
        UmlHost(layout, host).start()
    _wait_ready(layout, started, report)
    _start_bmcs(layout)
    return lab


def _start_bmcs(layout: Layout) -> None:
    """Every BMC has power, and answers."""
    for host in layout.hosts:
        bmc.start(layout, host)
    for host in layout.hosts:
        bmc.wait_answers(layout, host)


def down(name: str) -> list[str]:
    """Remove everything of the instance, in whatever state it is; returns what was removed, in words.

    Processes are found through the kernel, not through the state file, so that a crash in the middle
    of `up` or a lost file does not leave anything behind.
    """
    removed: list[str] = []
    with state.locked(name):
        removed += [f"process {pid} of a verb that was killed" for pid in process.kill_helpers(name)]
        for _ in range(3):  # a BMC may be starting its host in this very moment
            found = process.owned(name)
            # BMCs first: nobody may press a power button while the hosts are taken away.
            for leader in sorted(found, key=lambda one: not one.role.startswith("bmc-")):
                process.kill_session(leader.pid)
                removed.append(f"process {leader.role}")
        if (switch.NETNS_DIR / f"mlab-{name}").exists():
            _kill_namespace(name)
            removed.append(f"namespace mlab-{name}")
        switch.down(name)
        _unmount_below(names.ROOT / name)
        if state.exists(name):
            shutil.rmtree(names.ROOT / name)
            removed.append(str(names.ROOT / name))
    with state.slots_locked():
        if not any(path.is_dir() for path in names.ROOT.iterdir()):  # no other instance is there
            switch.forget_netns_dir()
    return removed


def _wait_ready(layout: Layout, started: float, report: Report) -> None:
    """All hosts in parallel. One that fails, or Ctrl-C, ends the wait for the others too."""
    given_up = threading.Event()

    def wait(host: str) -> None:
        UmlHost(layout, host).wait_ready(READY_DEADLINE_S, given_up)
        if not given_up.is_set():
            report(f"{host} ready after {time.monotonic() - started:.0f} s")

    with ThreadPoolExecutor(len(layout.machines)) as pool:
        try:
            for done in as_completed([pool.submit(wait, host) for host in layout.machines]):
                done.result()
        finally:
            given_up.set()


def leftovers(name: str) -> list[str]:
    """What of an instance is still on this machine; empty after `down`."""
    found = [f"process {one.pid} {one.role}" for one in process.owned(name)]
    if (switch.NETNS_DIR / f"mlab-{name}").exists():
        found.append(f"namespace mlab-{name}")
    if Path("/sys/class/net", f"mlab-{name}").exists():
        found.append(f"link mlab-{name}")
    found += [f"mount {path}" for path in mounts.below(names.ROOT / name)]
    if state.exists(name):
        found.append(str(names.ROOT / name))
    return found


def _reserve(name: str, hosts: int, kind: HostKind, memory_mib: int) -> Lab:
    host_names = tuple(f"h{number}" for number in range(1, hosts + 1))
    with state.slots_locked():
        if left := leftovers(name):
            raise LabRefusedError(
                f"lab {name!r} is already up, or was not taken down ({', '.join(left[:3])}): "
                f"run `lab --lab {name} down` first"
            )
        layout = Layout(name=name, slot=state.free_slot(), hosts=host_names, kind=kind, memory_mib=memory_mib)
        if kind == "uml" and (
            reason := needs.memory_reason(layout.total_memory_mib, needs.available_memory_mib())
        ):
            raise LabRefusedError(reason)
        layout.dir.mkdir(parents=True, mode=0o700)
        lab = Lab(layout=layout, chap={host: state.new_secret() for host in host_names})
        state.save(lab)
    for host in layout.machines:
        layout.host_dir(host).mkdir()
    descriptor = os.open(bmc.password_file(layout), os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(state.new_secret())
    return lab


def _mount_memory(layout: Layout) -> None:
    """The instance's own tmpfs: only memory that is free counts then, not the size of /dev/shm.

    Without a size, as for netns hosts, whose guests' memory is ordinary memory, it may take half of it.
    """
    size = f"size={layout.total_memory_mib + _MEMORY_SLACK_MIB}M," if layout.kind == "uml" else ""
    layout.memory_dir.mkdir()
    must(["mount", "-t", "tmpfs", "-o", f"{size}mode=0700", f"mlab-{layout.name}", str(layout.memory_dir)])


def _keys(lab: Lab) -> None:
    home = ssh_dir(lab.layout)
    home.mkdir(mode=0o700)
    kind = ["-t", "ed25519", "-N", "", "-C", f"lab {lab.name}"]
    must(["ssh-keygen", "-q", *kind, "-f", str(home / "id_ed25519")])


def _build_images(lab: Lab) -> None:
    uml_image.build_xstate(lab.layout.dir)
    public_key = (ssh_dir(lab.layout) / "id_ed25519.pub").read_text()

    def build(host: str) -> None:
        facts = uml_image.gather(lab.layout.host_dir(host), lab.chap.get(host, ""), public_key)
        uml_image.build(lab.layout, host, facts)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, lab.layout.machines))


def _known_hosts(lab: Lab) -> None:
    lines = []
    for host in lab.layout.machines:
        key = (lab.layout.host_dir(host) / "ssh_host_ed25519_key.pub").read_text().split()
        lines.append(f"{lab.layout.host_address(host, 'management')},{host} {key[0]} {key[1]}\n")
    (ssh_dir(lab.layout) / "known_hosts").write_text("".join(lines))


def _kill_namespace(name: str) -> None:
    """End what runs in the switches' namespace without the lab's mark (an observer started by hand)."""
    done = run(["ip", "netns", "pids", f"mlab-{name}"])
    for pid in done.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def _unmount_below(directory: Path) -> None:
    """Unmount whatever is mounted below a directory; LabError if something holds on to a mount."""
    end = time.monotonic() + _UNMOUNT_DEADLINE_S
    for mount in mounts.below(directory):
        while not (done := run(["umount", mount])).ok:
            if time.monotonic() > end:
                raise LabError(f"cannot unmount {mount}: {done.stderr.strip()}")
            time.sleep(0.1)
