"""Image files and devices of this host: looked at, made, written, served."""
