"""The backup job of a guest that is off, in nobody's way."""
