"""What doctor asks of a host and of a guest."""
