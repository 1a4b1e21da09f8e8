"""Runs on the storage host, as a program of its own: makes and removes LUNs of the kernel's target (LIO).

Reads one JSON request on stdin (secrets never stand in an argv) and prints nothing. rtslib is Debian's
package python3-rtslib-fb, so this file runs with /usr/bin/python3 and imports nothing of the lab.
"""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path
from typing import Any

LUN = 0
_LOCK = Path("/run/lab-lio.lock")


def create(request: dict[str, Any]) -> None:
    """One target with one LUN for one guest; admits the listed initiators, each with its CHAP secret."""
    # Only the storage host has rtslib's configfs; the lab's own type check runs without the package.
    import rtslib_fb as rtslib  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    store = rtslib.BlockStorageObject(request["name"], dev=request["device"])
    tpg = rtslib.TPG(rtslib.Target(rtslib.FabricModule("iscsi"), request["target"]), 1)
    tpg.set_attribute("authentication", "1")
    tpg.set_attribute("generate_node_acls", "0")  # demo mode off: an unknown initiator sees nothing
    tpg.set_attribute("demo_mode_discovery", "0")
    tpg.set_attribute("demo_mode_write_protect", "1")
    lun = rtslib.LUN(tpg, LUN, storage_object=store)
    for entry in request["initiators"]:
        acl = rtslib.NodeACL(tpg, entry["iqn"])
        acl.chap_userid = entry["user"]
        acl.chap_password = entry["secret"]
        rtslib.MappedLUN(acl, LUN, lun, write_protect=False)
    rtslib.NetworkPortal(tpg, request["portal"], 3260)
    tpg.enable = True
    rtslib.RTSRoot().save_to_file()


def remove(request: dict[str, Any]) -> None:
    """Remove the guest's target and its store; sessions on it end. Fine if there is none."""
    import rtslib_fb as rtslib  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    root = rtslib.RTSRoot()
    for target in list(root.targets):
        if target.wwn == request["target"]:
            target.delete()
    for store in list(root.storage_objects):
        if store.name == request["name"]:
            store.delete()
    root.save_to_file()


if __name__ == "__main__":
    given = json.load(sys.stdin)
    with _LOCK.open("w") as lock:  # two guests made at once: the saved configuration is one file
        fcntl.flock(lock, fcntl.LOCK_EX)
        {"create": create, "remove": remove}[given["action"]](given)
