"""The one thread that runs libvirt's own event loop.

libvirt needs it for events, keepalive and the close callback. It is registered before the first connection
is opened, and it never runs asyncio code: callbacks hand over with call_soon_threadsafe. (libvirt's asyncio
binding calls loop.add_reader from libvirt's threads, which asyncio does not allow.)
"""

from __future__ import annotations

import threading
import time

import libvirt

_lock = threading.Lock()
_thread: threading.Thread | None = None


def start() -> None:
    """Register and run libvirt's event loop; once per process, further calls do nothing."""
    global _thread  # noqa: PLW0603 - libvirt's registration is process-wide too
    with _lock:
        if _thread is not None:
            return
        libvirt.virEventRegisterDefaultImpl()
        libvirt.registerErrorHandler(_quiet, None)
        _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
        _thread.start()


def alive() -> bool:
    """Is the thread there? Without it no keepalive is answered: the agent then has to end."""
    return _thread is not None and _thread.is_alive()


def _run() -> None:
    # Without any handle or timer the loop would block for ever and not notice a later registration.
    libvirt.virEventAddTimeout(1000, _nothing, None)
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            time.sleep(0.1)  # a failing poll must not become a busy loop


def _nothing(timer: int, opaque: object) -> None:
    pass


def _quiet(context: object, error: object) -> None:
    """libvirt prints every error on stderr by default; ours arrive as exceptions and are logged once."""
