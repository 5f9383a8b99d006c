"""What goes with --chain and --in-place: all else is told before anything is opened."""

from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--chain-from", "x", "--output", "/x"), "--chain-from goes with --chain"),
        (("--chain", "--output", "/x", "--format", "raw"), "a raw image has no backing file"),
        (("--chain",), "--chain makes new images"),
        (("--chain", "--output", "/x", "--plain"), "--chain goes with"),
        (("--in-place", "--output", "/x"), "--in-place writes the guest's own disks"),
        (("--in-place", "--format", "raw"), "--in-place writes the guest's own disks"),
        (("--in-place", "--to", "vda=/x"), "--in-place writes the guest's own disks"),
        (("--in-place", "--chain", "--output", "/x"), "--in-place writes the guest's own disks"),
        (("--in-place", "--chain"), "--in-place writes the guest's own disks"),
        (("--in-place", "--chain-from", "x"), "--in-place writes the guest's own disks"),
        (("--chain", "--output", "/x", "--luks-passphrase-file", "/x"), "--chain goes with"),
        (("--to", "vda=/x", "--preallocation", "full"), "--preallocation is for new images"),
        (("--in-place", "--define"), "--in-place writes the guest's own disks"),
        (("--keep-state", "--output", "/x"), "--keep-state and --quick go with --in-place"),
        (("--quick", "--output", "/x"), "--keep-state and --quick go with --in-place"),
    ],
)
def test_options_that_do_not_go_together(run: Run, options: tuple[str, ...], says: str) -> None:
    """Exit code 2, one sentence, one hint."""
    done = run("restore", "guest", *options)
    assert done.code == 2
    assert says in done.err
    assert len(done.err.strip().splitlines()) == 2
