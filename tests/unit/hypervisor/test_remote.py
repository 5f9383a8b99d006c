"""What leads to another machine, how its disks are reached, and that nothing of it is looked for here."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.live.jobxml import JobDisk, backup_xml, job_socket
from vmbackup.hypervisor.places import domain_folders_of
from vmbackup.hypervisor.remote.remote import Reach, address_of, host_of, is_place, place_of, require_here, tag_of


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("qemu:///system", None),
        ("qemu:///session", None),
        ("qemu+unix:///system?socket=/run/x", None),
        ("test:///default", None),
        ("qemu+ssh://root@hv1/system", "hv1"),
        ("qemu+ssh://root@hv1:2222/system?keyfile=/k", "hv1"),
        ("qemu+tls://[2001:db8::1]/system", "2001:db8::1"),
        ("qemu://hv1/system", "hv1"),
        ("qemu+tcp:///system", "localhost"),
        ("qemu+libssh2://hv1.example.org/system", "hv1.example.org"),
    ],
)
def test_which_uri_leads_to_another_machine(uri: str, host: str | None) -> None:
    assert host_of(uri) == host


def test_a_place_is_told_from_a_socket(tmp_path: Path) -> None:
    """It names address, port and whose it is."""
    place = place_of("2001:db8::1", 10810, "0123abcd4567")
    assert place == "nbd://[2001:db8::1]:10810/vmbackup-0123abcd4567"
    assert is_place(place)
    assert not is_place("/var/lib/libvirt/qemu/domain-1-x/vmbackup-0123abcd4567.sock")
    assert (address_of(place).host, address_of(place).port, tag_of(place)) == ("2001:db8::1", 10810, "0123abcd4567")


def test_each_run_has_a_port_of_its_own() -> None:
    """Those of other runs are left out, and where none is left that is said."""
    reach, taken = Reach("hv1", None, ports=(2000, 2002)), list[str]()
    for number in range(3):
        taken.append(reach.place(f"{number}", ["/a/socket", *taken], random.Random(number)))
    assert sorted(address_of(place).port for place in taken) == [2000, 2001, 2002]
    with pytest.raises(HypervisorError, match="2000 to 2002 for NBD on hv1 are all in use"):
        reach.place("more", taken)


def test_nothing_goes_in_plain() -> None:
    """No certificates: no connection; and a job's XML always asks for TLS."""
    with pytest.raises(HypervisorError, match="only with TLS") as caught:
        Reach("hv1", None).tls()
    assert "nbd_tls_dir" in (caught.value.hint or "")
    with pytest.raises(HypervisorError, match="/nowhere cannot be used"):
        Reach("hv1", Path("/nowhere")).tls()
    xml = backup_xml(place_of("10.0.0.5", 10811, "ab"), [JobDisk("vda", "full", "/s/vmbackup-ab.vda.qcow2")], [], None)
    assert "<server transport='tcp' tls='yes' name='10.0.0.5' port='10811'" in xml.replace('"', "'")


def test_a_job_is_known_by_its_scratch_files() -> None:
    """A port may be anybody's; one without scratch files of ours is not ours."""
    place = place_of("10.0.0.5", 10811, "0123abcd4567")
    ours = backup_xml(place, [JobDisk("vda", "full", "/s/vmbackup-0123abcd4567.vda.qcow2")], ["sda"], None)
    assert job_socket(ours) == place
    assert job_socket(ours.replace("vmbackup-0123abcd4567.vda", "theirs")) == ""


def test_what_needs_files_of_another_machine_is_refused() -> None:
    require_here(None, "a drill", "let it be")
    with pytest.raises(HypervisorError, match="a drill needs files of hv1, which are out of reach") as caught:
        require_here(Reach("hv1", None), "a drill", "let it be")
    assert "run vmbackup on hv1 itself" in (caught.value.hint or "")


def test_the_folders_of_a_users_own_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libvirt finds them."""
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/you")
    assert domain_folders_of("qemu:///session") == "/home/you/.config/libvirt/qemu/lib"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/you")
    assert domain_folders_of("qemu+unix:///session?socket=/x") == "/etc/you/libvirt/qemu/lib"
    assert domain_folders_of("qemu:///system") == "/var/lib/libvirt/qemu"
