"""Stores of immutable objects: the Protocol and its backends."""
