"""All that knows libvirt and QEMU."""
