"""iSCSI through the kernel's initiator (open-iscsi): sessions from sysfs, login and logout by iscsiadm."""
