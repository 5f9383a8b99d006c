"""Domains that are set aside: they hang on a repository, and no job backs them up before they stand alone."""

import json
import os

FOLDER = "booted"


def set_aside(state_dir: str) -> frozenset[str]:
    """UUIDs of the domains that `boot` made on this host and that are not finished (engine/boot/records.py)."""
    folder = os.path.join(state_dir, FOLDER)
    try:
        names = os.listdir(folder)
    except OSError:
        return frozenset()
    return frozenset(filter(None, (_uuid(os.path.join(folder, name)) for name in names if name.endswith(".json"))))


def _uuid(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file)["uuid"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
