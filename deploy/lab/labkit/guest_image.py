"""The kernel and initramfs of the lab's guests, built once into the checkout's cache.

The kernel is Debian's cloud kernel, fetched with `apt-get download` and unpacked, never installed.
The initramfs holds busybox, the virtio modules and the workload. Its folder is named after the hash
of everything that goes into it, so an unchanged checkout builds nothing and a changed one never
replaces the files of a running guest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labkit.sh import LabError, must, run

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/bin/busybox")
# The order in which they load: every module after the ones it needs (lab.md's recipe, modules.dep).
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
    "virtio_balloon",
    "button",
    "evdev",
)
WORKLOAD = Path(__file__).resolve().parent.parent / "workload"
CHECKOUT = Path(__file__).resolve().parents[3]
APT_OPTIONS = ("-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3")
CFLAGS = ("-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")

_KERNEL_DEPENDENCY = re.compile(r"Depends:\s*(linux-image-\S+-cloud-amd64)")


@dataclass(frozen=True)
class GuestImage:
    """Paths on this machine; UML hosts see the same paths through their read-only root."""

    kernel: Path
    initramfs: Path


def cache_dir() -> Path:
    """Where built files live: MIGRD_LAB_CACHE, else .cache/lab in the checkout."""
    return Path(os.environ.get("MIGRD_LAB_CACHE") or CHECKOUT / ".cache" / "lab")


def build(cache: Path | None = None) -> GuestImage:
    """Build what is missing and return the paths; a second call does no work.

    Raises LabError, naming what failed: no compiler, no busybox-static, no package from the mirror.
    """
    cache = cache or cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    if not BUSYBOX.exists():
        raise LabError("busybox is missing: apt-get install -y --no-install-recommends busybox-static")
    with _locked(cache / "image.lock"):
        kernel_root = _kernel_root(cache)
        folder = cache / f"guest-{_content_hash(kernel_root)}"
        if not folder.is_dir():
            _build_into(folder, kernel_root)
    return GuestImage(folder / "vmlinuz", folder / "initramfs")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two `lab guest add` at once must not build the same image into each other."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _kernel_root(cache: Path) -> Path:
    """The unpacked kernel package; the newest in the cache, downloaded only if there is none."""
    unpacked = sorted(cache.glob("linux-image-*-cloud-amd64"), key=lambda path: path.stat().st_mtime)
    if unpacked:
        return unpacked[-1]
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        package = _kernel_package()
        try:
            _download(package, scratch)
        except LabError:  # old lists name a version that the mirror has no more
            package = _kernel_package(fresh=True)
            _download(package, scratch)
        archive = next(Path(scratch).glob("*.deb"))
        must(["dpkg", "-x", str(archive), f"{scratch}/root"], deadline_s=120)
        Path(scratch, "root").rename(cache / package)
    return cache / package


def _download(package: str, directory: str) -> None:
    """`apt-get download` writes to the working directory and has no option for another one."""
    must(["env", "-C", directory, "apt-get", "download", "-q", *APT_OPTIONS, package], deadline_s=300)


def _kernel_package(*, fresh: bool = False) -> str:
    """The package that the metapackage points to now: linux-image-VERSION-cloud-amd64."""
    found = _KERNEL_DEPENDENCY.search(run(["apt-cache", "depends", KERNEL_META_PACKAGE]).stdout)
    if found is None or fresh:
        must(["apt-get", "update", "-q", *APT_OPTIONS], deadline_s=300)
        found = _KERNEL_DEPENDENCY.search(must(["apt-cache", "depends", KERNEL_META_PACKAGE]))
    if found is None:
        raise LabError(f"apt knows no {KERNEL_META_PACKAGE}: are Debian's amd64 package lists there?")
    return found[1]


def _content_hash(kernel_root: Path) -> str:
    digest = hashlib.sha256(f"{kernel_root.name} {MODULES} {CFLAGS}".encode())
    for path in (BUSYBOX, Path(__file__), *sorted(WORKLOAD.iterdir())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _build_into(folder: Path, kernel_root: Path) -> None:
    """Build beside `folder` and rename, so that a killed build leaves nothing that looks finished."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name)
        tree, out = scratch / "tree", scratch / "out"
        (tree / "bin").mkdir(parents=True)
        (tree / "modules").mkdir()
        out.mkdir()
        shutil.copy(BUSYBOX, tree / "bin/busybox")
        (tree / "bin/sh").symlink_to("busybox")
        shutil.copy(WORKLOAD / "init", tree / "init")
        (tree / "init").chmod(0o755)
        (tree / "modules.order").write_text("\n".join(MODULES) + "\n")
        for name in MODULES:
            shutil.copy(_module(kernel_root, name), tree / "modules" / f"{name}.ko")
        must(["gcc", *CFLAGS, "-o", str(tree / "bin/workload"), str(WORKLOAD / "workload.c")], deadline_s=120)
        (out / "initramfs").write_bytes(_cpio(tree))
        shutil.copy(next((kernel_root / "boot").glob("vmlinuz-*")), out / "vmlinuz")
        for path in out.iterdir():
            path.chmod(0o644)
        out.chmod(0o755)
        out.rename(folder)


def _module(kernel_root: Path, name: str) -> Path:
    found = next(kernel_root.glob(f"lib/modules/*/kernel/**/{name}.ko"), None)
    if found is None:
        raise LabError(f"{kernel_root.name} has no module {name}.ko")
    return found


def _cpio(tree: Path) -> bytes:
    """The tree as a gzipped newc archive. `cpio` and `gzip` write it: their output is what kernels expect."""
    archive = tree.parent / "initramfs.cpio"
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    must(
        ["env", "-C", str(tree), "cpio", "--quiet", "-o", "-H", "newc", "--owner=0:0", "-O", str(archive)],
        input="\n".join(names).encode() + b"\n",
    )
    must(["gzip", "-9n", str(archive)])
    return archive.with_suffix(".cpio.gz").read_bytes()
