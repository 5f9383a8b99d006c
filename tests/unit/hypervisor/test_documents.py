"""What of a guest lies beside its disks is read for the restore point; what cannot be is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmbackup.hypervisor import documents
from vmbackup.hypervisor.checks.guest import beside_checks
from vmbackup.hypervisor.documents import read_documents

UUID = "5a6d1c1e-0c4f-4b6e-8d2e-0d6c1f4f7a01"
TPM = "<devices><tpm model='tpm-crb'><backend type='emulator' version='{version}'>{source}</backend></tpm></devices>"


class Domain:
    """As much of a virDomain as is asked."""

    def __init__(self, inside: str, *, autostart: bool = False, uri: str = "qemu:///system") -> None:
        self.inside, self._autostart, self._uri = inside, autostart, uri

    def autostart(self) -> int:
        return int(self._autostart)

    def connect(self) -> Domain:
        return self

    def getURI(self) -> str:  # noqa: N802
        return self._uri

    def isPersistent(self) -> int:  # noqa: N802 (libvirt's)
        return 1

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return f"<domain id='{flags}'><name>g</name><uuid>{UUID}</uuid>{self.inside}</domain>"


def folder_of(root: Path) -> str:
    (root / "qemu").mkdir()
    return str(root / "qemu")


def test_a_guest_without_any(tmp_path: Path) -> None:
    """Only its XML, inactive and with secrets."""
    found = read_documents(Domain(""), folder_of(tmp_path))
    assert list(found.files) == ["domain.xml"]
    assert b"id='3'" in found.files["domain.xml"]
    assert found.notes == []


def test_a_guest_that_starts_with_its_host(tmp_path: Path) -> None:
    found = read_documents(Domain("", autostart=True), folder_of(tmp_path)).files
    assert found["guest.json"] == b'{"autostart": true}'
    assert documents.starts_with_host(found)


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b"1", b'{"autostart": 1}', b'{"autostart": false}', b"\xff"])
def test_settings_that_say_nothing_of_it(said: bytes) -> None:
    assert not documents.starts_with_host({"guest.json": said})
    assert not documents.starts_with_host({})


@pytest.mark.parametrize("far", [False, True])
def test_files_that_it_is_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    """Of this host they are to be read; of another one that they are not is said, once."""
    domain = Domain("<os><kernel>/boot/k</kernel><initrd>/boot/i</initrd></os>")
    if far:
        monkeypatch.setattr(domain, "getURI", lambda: "qemu+ssh://other/system")
    found = read_documents(domain, folder_of(tmp_path))
    assert [file.path for file in found.boot_files] == ([] if far else ["/boot/k", "/boot/i"])
    said = "/boot/k, /boot/i: the hypervisor's and not read from here; a restored guest starts only where they are"
    assert found.notes == [said] * far


@pytest.mark.parametrize("form", ["<nvram>{path}</nvram>", "<nvram type='file'><source file='{path}'/></nvram>"])
def test_uefi_variables(tmp_path: Path, form: str) -> None:
    """In both of libvirt's ways to tell where they are."""
    path = tmp_path / "g_VARS.fd"
    path.write_bytes(b"variables" + bytes(100))
    found = read_documents(Domain(f"<os>{form.format(path=path)}</os>"), folder_of(tmp_path))
    assert found.files["nvram.fd"] == b"variables" + bytes(100)


@pytest.mark.parametrize(("version", "place"), [("2.0", "tpm2/tpm2-00.permall"), ("1.2", "tpm1.2/tpm-00.permall")])
def test_the_state_of_a_tpm(tmp_path: Path, version: str, place: str) -> None:
    """Out of the folder that libvirt keeps for the guest."""
    path = tmp_path / "swtpm" / UUID / place
    path.parent.mkdir(parents=True)
    path.write_bytes(b"keys")
    found = read_documents(Domain(TPM.format(version=version, source="")), folder_of(tmp_path))
    assert found.files[path.name] == b"keys"
    assert found.notes == []


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_the_state_of_a_tpm_elsewhere(tmp_path: Path, kind: str) -> None:
    """Where the XML names a file or folder of its own."""
    path = tmp_path / "own" / "tpm2-00.permall"
    path.parent.mkdir()
    path.write_bytes(b"keys")
    source = f"<source type='{kind}' path='{path if kind == 'file' else path.parent}'/>"
    found = read_documents(Domain(TPM.format(version="2.0", source=source)), folder_of(tmp_path))
    assert found.files["tpm2-00.permall"] == b"keys"


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """The restore point is made all the same."""
    inside = f"<os><nvram>{tmp_path}/gone.fd</nvram></os>{TPM.format(version='2.0', source='')}"
    found = read_documents(Domain(inside), folder_of(tmp_path))
    assert list(found.files) == ["domain.xml"]
    assert [note.partition(": ")[2] for note in found.notes] == [
        "a restored guest starts with its firmware's default variables",
        "a restored guest starts with an empty TPM",
    ]
    assert "gone.fd could not be read (No such file or directory)" in found.notes[0]
    assert [path.rpartition("/")[2] for path in found.unread] == ["gone.fd", "tpm2-00.permall"]


@pytest.mark.parametrize("far", [False, True])
def test_doctor_tells_it_beforehand(tmp_path: Path, far: bool) -> None:
    """With what mends it; what can be read is not told."""
    path = tmp_path / "g_VARS.fd"
    domain, folder = Domain(f"<os><nvram>{path}</nvram></os>"), folder_of(tmp_path)
    (check,) = beside_checks(domain, "g", folder, far=far)
    assert (check.status, str(path) in check.message) == ("warn", True)
    assert check.fix.startswith("run vmbackup on the hypervisor" if far else f"ls -l {path}   #")
    path.write_bytes(b"variables")
    assert list(beside_checks(domain, "g", folder, far=far)) == []


def test_those_of_another_machine_are_said(tmp_path: Path) -> None:
    """A file of the same name on this one is not the guest's."""
    path = tmp_path / "g_VARS.fd"
    path.write_bytes(b"somebody else's")
    inside = f"<os><kernel>{path}</kernel><nvram>{path}</nvram></os>{TPM.format(version='2.0', source='')}"
    found = read_documents(Domain(inside, uri="qemu+ssh://root@hv1/system"), folder_of(tmp_path))
    assert (list(found.files), found.boot_files) == (["domain.xml"], [])
    assert len(found.notes) == 3
    assert all("the hypervisor's and not read from here" in note for note in found.notes)


def test_variables_on_the_network_are_said(tmp_path: Path) -> None:
    """They lie in no file of this host."""
    inside = "<os><nvram type='network'><source protocol='iscsi' name='x'/></nvram></os>"
    found = read_documents(Domain(inside), folder_of(tmp_path))
    assert "the UEFI variables on the network could not be read" in found.notes[0]


def test_a_file_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read without a limit; zeros beyond what is stored cost nothing."""
    monkeypatch.setattr(documents, "_MOST_STORED", 10)
    monkeypatch.setattr(documents, "_MOST", 1 << 20)
    path, inside = tmp_path / "vars.fd", f"<os><nvram>{tmp_path}/vars.fd</nvram></os>"
    folder = folder_of(tmp_path)
    for content, taken in ((b"x" * 11, False), (b"x" + bytes((1 << 20) - 1), True), (bytes((1 << 20) + 1), False)):
        path.write_bytes(content)
        found = read_documents(Domain(inside), folder)
        assert ("nvram.fd" in found.files) == taken
        assert bool(found.notes) != taken
