"""Backup, restore and verify: plain values in, plain values out."""
