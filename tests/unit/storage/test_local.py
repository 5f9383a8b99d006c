"""The local store keeps the contract, with hard links and without."""

import errno
import os
from pathlib import Path

import pytest

from tests.unit.storage.contract import StoreContract


class TestLocalStore(StoreContract):
    """The contract on a file system with hard links."""


class TestLocalStoreWithoutLinks(StoreContract):
    """The contract where link(2) is refused, as on vfat."""

    @pytest.fixture(autouse=True)
    def no_links(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def link(*_args: object, **_options: object) -> None:
            raise PermissionError(errno.EPERM, "no links")

        monkeypatch.setattr(os, "link", link)
        for_child_processes = (
            "import errno, os\n"
            "def link(*args, **options): raise PermissionError(errno.EPERM, 'no links')\n"
            "os.link = link\n"
        )
        (tmp_path / "sitecustomize.py").write_text(for_child_processes)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
