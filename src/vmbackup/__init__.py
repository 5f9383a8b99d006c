"""vmbackup: incremental backup and restore of libvirt/QEMU virtual machines."""

__version__ = "0.1.0"
