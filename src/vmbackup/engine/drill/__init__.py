"""Restore points that prove that they boot."""
