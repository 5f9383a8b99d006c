"""The lab: libvirt, QEMU and guests for the tests, the demo and the benchmark (README.md beside this)."""
