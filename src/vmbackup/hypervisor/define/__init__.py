"""A restored guest defined on this host, and what the host has for it."""
