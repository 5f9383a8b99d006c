"""Tests: unit (no daemon needed), real (libvirt and QEMU), torture (long); lab makes what they need."""
