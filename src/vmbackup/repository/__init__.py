"""Chunks, packs, disk maps, restore points, sessions and keys in a store of immutable objects."""

from vmbackup.repository.repository import Repository
from vmbackup.repository.summary import DiskSummary, PointSummary

__all__ = ["DiskSummary", "PointSummary", "Repository"]
