"""From a host's name to the object that works it, whichever kind the lab is of."""

from __future__ import annotations

from labkit import netns_host
from labkit.netns_host import NetnsHost
from labkit.sh import LabRefusedError
from labkit.state import Lab
from labkit.uml_host import UmlHost


def machine(lab: Lab, name: str) -> UmlHost | NetnsHost:
    """A host or the storage host; raises LabRefusedError for a name that the lab does not have."""
    if name not in lab.layout.machines:
        raise LabRefusedError(f"lab {lab.name} has no host {name!r}: {', '.join(lab.layout.machines)}")
    return netns_host.host(lab, name) if lab.layout.kind == "netns" else UmlHost(lab.layout, name)
