"""A restore point as blocks that are read in any order."""
