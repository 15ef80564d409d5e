"""Machines: QEMU in its jail, driven over QMP, with snapshots that sessions share."""
