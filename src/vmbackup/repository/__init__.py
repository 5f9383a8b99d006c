"""Chunks, packs, disk maps, restore points, sessions and keys in a store of immutable objects."""
