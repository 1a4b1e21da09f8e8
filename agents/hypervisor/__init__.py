"""What the agent needs of a hypervisor, and libvirt as the one that provides it."""
