"""Makes the root disk of a UML host: an ext4 image that holds the overlay's upper layer."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from labkit import guest_image, uml_boot
from labkit.layout import Layout
from labkit.sh import LabError, must
from labkit.uml_seed import HIDDEN_DIRS, KERNEL_MODULES_DIR, Facts, Seed, seed

ROOT_DISK_MIB = 8192  # sparse: only what a host writes takes room on this machine
_BOOT_MODULES = ("ext4", "overlay")
_STICKY = ("tmp", "var/tmp")
_PRIVATE = ("root",)
_XSTATE_SOURCE = Path(__file__).resolve().parents[1] / "uml" / "xstate.c"


def kernel_version() -> str:
    """Version of the UML kernel's modules; raises LabError if they are not installed."""
    found = sorted(path.name for path in Path(KERNEL_MODULES_DIR).glob("*"))
    if not found:
        raise LabError(f"no UML modules under {KERNEL_MODULES_DIR}: apt-get install user-mode-linux")
    return found[-1]


def build_xstate(directory: Path) -> Path:
    """Build what lets the kernel run on a processor with AMX (`uml/xstate.c` says why)."""
    library = directory / uml_boot.XSTATE
    flags = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")
    must(["gcc", *flags, "-o", str(library), str(_XSTATE_SOURCE)])
    return library


def gather(directory: Path, chap_secret: str, public_key: str) -> Facts:
    """Facts of one host; makes its ssh host key in `directory`."""
    key = directory / "ssh_host_ed25519_key"
    must(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)])
    generators = sorted(path.name for path in Path("/lib/systemd/system-generators").glob("*"))
    return Facts(
        kernel=kernel_version(),
        shadow=Path("/etc/shadow").read_text(),
        iscsid_conf=Path("/etc/iscsi/iscsid.conf").read_text(),
        public_key=public_key,
        host_key=key.read_bytes(),
        host_key_public=key.with_suffix(".pub").read_bytes(),
        chap_secret=chap_secret,
        machine_id=os.urandom(16).hex(),
        generators=tuple(generators),
    )


def build(layout: Layout, host: str, facts: Facts) -> None:
    """Write `root.img` and `init` into the host's directory."""
    directory = layout.host_dir(host)
    tree = directory / "seed"
    write_tree(tree / "upper", seed(layout, host, facts))
    (tree / "work").mkdir()
    image = directory / "root.img"
    make_disk(image, ROOT_DISK_MIB)
    options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
    must(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", options, "-d", str(tree), str(image)])
    shutil.rmtree(tree)
    modules = Path(KERNEL_MODULES_DIR, facts.kernel)
    dependencies = (modules / "modules.dep").read_text()
    script = init_script([f"{modules}/{path}" for path in load_order(dependencies, _BOOT_MODULES)], windows())
    (directory / "init").write_text(script)
    (directory / "init").chmod(0o755)


def windows() -> list[Path]:
    """The checkout and the guests' image, where they lie below a directory that is hidden from hosts."""
    needed = sorted({guest_image.CHECKOUT, guest_image.cache_dir()})
    return [path for path in needed if any(path.is_relative_to(f"/{name}") for name in HIDDEN_DIRS)]


def make_disk(path: Path, size_mib: int) -> None:
    """An empty sparse file, readable by root only."""
    with path.open("xb") as out:
        os.fchmod(out.fileno(), 0o600)
        out.truncate(size_mib * 1024 * 1024)


def write_tree(root: Path, content: Seed) -> None:
    """Put a seed into a directory of this machine, overlay marks included."""
    for name in (*content.hidden, *content.directories):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in content.hidden:
        os.setxattr(root / name, "trusted.overlay.opaque", b"y")
    for name, (mode, data) in content.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
    for name, target in content.links.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    for name in content.absent:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.mknod(root / name, 0o600 | stat.S_IFCHR, os.makedev(0, 0))  # an overlay "whiteout"
    for name in _PRIVATE:
        (root / name).chmod(0o700)
    for name in _STICKY:
        (root / name).chmod(0o1777)


def load_order(modules_dep: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of modules in the order insmod needs: dependencies first (modules.dep(5) lists them last)."""
    lines = dict(line.split(":", 1) for line in modules_dep.splitlines() if ":" in line)
    order: list[str] = []
    for name in wanted:
        path = next((path for path in lines if path.endswith(f"/{name}.ko")), None)
        if path is None:
            continue  # built into the kernel
        for needed in (*reversed(lines[path].split()), path):
            if needed not in order:
                order.append(needed)
    return order


def init_script(modules: list[str], windows: Sequence[Path]) -> str:
    """First program of the kernel: swaps the read-only view of this machine for the host's own overlay.

    `windows` are directories of this machine that a host sees (read-only) even below one that is hidden
    from it, such as a checkout in /tmp.
    """
    mounts = "\n".join(
        f"mkdir -p /mnt/root{place} && mount -t hostfs -o ro,{place} none /mnt/root{place} || fail {place}"
        for place in windows
    )
    inserts = "\n".join(f"insmod {path}" for path in modules)
    return f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
fail() {{ echo "lab: $1" >/dev/console; exec poweroff -f; }}
mount -t proc proc /proc
{inserts}
mount -t tmpfs -o size=1m tmpfs /mnt && mkdir /mnt/disk /mnt/root || fail "no place to mount"
mount -t ext4 /dev/ubda /mnt/disk || fail "root disk does not mount"
mount -t overlay -o lowerdir=/,upperdir=/mnt/disk/upper,workdir=/mnt/disk/work overlay /mnt/root ||
    fail "overlay does not mount"
{mounts}
cd /mnt/root && pivot_root . mnt || fail "pivot_root"
mount -t devtmpfs dev dev
exec chroot . /lib/systemd/systemd
"""
