"""A backup: what is planned, read, proven and kept of it."""
