"""NBD: the protocol, a client, and extents."""
