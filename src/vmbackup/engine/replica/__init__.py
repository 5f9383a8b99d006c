"""Restore points copied to another repository."""
