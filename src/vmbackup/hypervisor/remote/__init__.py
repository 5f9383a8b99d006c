"""A hypervisor that is another machine."""
