"""Guests that run from the repository, and how they come to stand alone."""
