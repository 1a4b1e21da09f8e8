"""iSCSI through QEMU's own initiator (libiscsi): no device, no session on the host; secrets and identity."""
