"""Names of checkpoints, sockets and scratch files."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from vmbackup.hypervisor.names import CheckpointName, file_tag, scratch_name, session_tag, socket_name

SESSION = "0123456789ab" + "deadbeef" + "0" * 12


def test_a_name_says_whose_it_is_and_when() -> None:
    """Repository, UTC time to the second, the session's point id, and chance."""
    time = datetime(2026, 11, 24, 4, 0, 0, 999, tzinfo=timezone(timedelta(hours=1)))
    name = CheckpointName.make("0123abcd", SESSION, time)
    assert str(name).startswith("vmbackup-0123abcd-20261124T030000Z-deadbeef")
    assert CheckpointName.parse(str(name)) == name
    assert (name.repository_id, name.session) == ("0123abcd", "deadbeef")


def test_names_are_never_used_twice() -> None:
    """The same session at the same second makes another name."""
    now = datetime.now(UTC)
    assert len({str(CheckpointName.make("0123abcd", SESSION, now)) for _ in range(8)}) > 1


@pytest.mark.parametrize(
    "text",
    [
        "", "theirs", "vmbackup-", "vmbackup-0123ABCD-20261124T030000Z-deadbeef0000",
        "vmbackup-0123abcd-20261324T030000Z-deadbeef0000", "vmbackup-0123abcd-20261124T030000Z-deadbeef",
        "vmbackup-0123abcd-20261124T030000Z-deadbeef0000\n", "xvmbackup-0123abcd-20261124T030000Z-deadbeef0000",
    ],
)  # fmt: skip
def test_anybody_elses_name_is_nobody_of_ours(text: str) -> None:
    """Only the exact form is ours."""
    assert CheckpointName.parse(text) is None


@pytest.mark.parametrize("session", ["", "deadbeef", SESSION.upper(), SESSION + "0"])
def test_a_session_is_32_hex_digits(session: str) -> None:
    """Anything else is a programming error."""
    with pytest.raises(ValueError, match="32 hex"):
        session_tag(session)


def test_a_repository_id_is_8_hex_digits() -> None:
    """Anything else is a programming error."""
    with pytest.raises(ValueError, match="8 hex"):
        CheckpointName.make("0123", SESSION, datetime.now(UTC))


def test_files_are_named_by_their_run() -> None:
    """Socket and scratch share the run's tag, which is short enough for a socket's path."""
    tag = file_tag(SESSION)
    assert tag.startswith("deadbeef")
    assert socket_name(tag) == f"vmbackup-{tag}.sock"
    assert scratch_name(tag, "vda") == f"vmbackup-{tag}.vda.qcow2"
    folder = "/var/lib/libvirt/qemu/domain-4294967295-" + "n" * 20
    assert len(f"{folder}/{socket_name(tag)}") <= 107
