"""Guests that we started: booted from the repository, or thrown away after a drill."""
