"""Chunks on their way: read, encoded, packed, stored, and back again, by several workers."""
