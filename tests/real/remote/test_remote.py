"""A backup host beside the hypervisor: libvirt over ssh or TLS, disks by NBD over TLS, and none of its files."""

from __future__ import annotations

import random
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from tests.lab.certificate import make_pki
from tests.lab.cli import Cli, CliError
from tests.lab.disk import Disk, MiB, same_content
from tests.lab.domain import Workhorse
from tests.lab.second import SecondLibvirt
from tests.lab.session import Lab
from tests.lab.sshd import Sshd

pytestmark = pytest.mark.real
K64 = 65536
# Hides a folder from a command: what this machine does not have, nobody can have looked at.
_HIDE = 'mount -t tmpfs none "$1"; mount -t tmpfs -o size=1M none "$2"; shift 2; exec "$@"'


@dataclass
class Remote:
    """A hypervisor with one guest, and what a backup host has to reach it."""

    second: SecondLibvirt
    horse: Workhorse
    tls_uri: str
    pki: Path
    scratch: Path


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def remote(lab: Lab) -> Iterator[Remote]:
    """libvirtd --listen with certificates, QEMU with its own for backups."""
    pki = make_pki(lab.folder / "pki")
    for name, ours in (("cacert", "ca-cert"), ("clientcert", "client-cert"), ("clientkey", "client-key")):
        shutil.copy(pki / f"{ours}.pem", pki / f"{name}.pem")   # as libvirt's client calls them
    port = free_port()
    listens = {
        "listen_tls": "1", "listen_tcp": "0", "tls_port": f'"{port}"', "listen_addr": '"127.0.0.1"',
        "key_file": f'"{pki}/server-key.pem"', "cert_file": f'"{pki}/server-cert.pem"',
        "ca_file": f'"{pki}/ca-cert.pem"', "auth_tls": '"none"',
    }
    backups = {"backup_tls_x509_cert_dir": f'"{pki}"', "backup_tls_x509_verify": "1"}
    scratch = lab.new_folder("scratch")
    with lab.second(libvirtd=listens, qemu=backups, arguments=["--listen"]) as second:
        name = lab.new_name()
        horse = Workhorse(second.connection, name, lab.new_folder("domain"), [Disk(size=8 * MiB)], second.run_folder)
        horse.start()
        yield Remote(second, horse, f"qemu+tls://localhost:{port}/system?pkipath={pki}", pki, scratch)
        horse.remove()
    assert list(scratch.iterdir()) == []
    for folder in (pki, scratch):
        shutil.rmtree(folder)


@pytest.fixture
def backup_host(remote: Remote, work_dir: Path) -> Callable[..., Cli]:
    """The command on the backup host, which has none of the hypervisor's images; the first has the repository."""
    made: list[Cli] = []

    def make(uri: str, *more: str) -> Cli:
        folder = work_dir / f"host-{len(made)}"
        folder.mkdir(mode=0o755)
        hidden = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _HIDE, "x"]
        hidden += [str(remote.horse.folder), str(remote.scratch)]
        cli = Cli(folder, before=hidden, home=made[0].folder if made else None, uri=uri)
        text = cli.config.read_text().replace(f'scratch_dir = "{folder}/scratch"', f'scratch_dir = "{remote.scratch}"')
        cli.config.write_text(text.replace("[libvirt]\n", "[libvirt]\n" + "".join(f"{line}\n" for line in more)))
        if not made:
            cli.run("init")
        made.append(cli)
        return cli

    return make


def compare(host: Cli, remote: Remote) -> None:
    """The newest restore point is what the guest's disk is now."""
    folder = host.folder / "restored"
    host.run("restore", f"{remote.horse.name}@latest", "--output", str(folder))
    remote.horse.flush("vda")
    assert same_content(remote.horse.path("vda"), folder / "vda.qcow2") is None
    shutil.rmtree(folder)


def modes(document: dict[str, list[dict[str, list[dict[str, object]]]]]) -> list[object]:
    """How the disks of the one restore point were read, and how much had changed."""
    (point,) = document["points"]
    return [(disk["mode"], disk["changed_bytes"]) for disk in point["disks"]]


def test_libvirt_over_tls(remote: Remote, backup_host: Callable[..., Cli]) -> None:
    """Whole, incremental, restored; over TLS from the first byte of a disk on."""
    name, horse = remote.horse.name, remote.horse
    host = backup_host(remote.tls_uri, f'nbd_tls_dir = "{remote.pki}"')
    horse.write_data("vda", 0, random.Random(1).randbytes(3 * MiB))
    first = host.run("backup", name)
    assert [mode for mode, _ in modes(first)] == ["full"]
    assert first["points"][0]["warnings"] == []
    compare(host, remote)
    horse.write("vda", 5 * MiB, K64, 0x31)
    horse.zero("vda", 0, K64)
    assert modes(host.run("backup", name)) == [("incremental", 2 * K64)]
    compare(host, remote)
    checks = {check["name"]: check for check in host.run("doctor", name, ok=(0, 3))["checks"]}
    assert checks["nbd-tls"]["status"] == "ok"
    assert "socket-folder" not in checks
    assert "what is free cannot be told" in checks["scratch-need"]["message"]
    resume = shlex.split(checks["guest-agent"]["fix"])
    assert resume == ["virsh", "-c", remote.tls_uri, "resume", name]
    subprocess.run(resume, check=True, capture_output=True)
    assert horse.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    horse.domain.suspend()


def test_libvirt_over_ssh(remote: Remote, backup_host: Callable[..., Cli], lab: Lab) -> None:
    """The same by a key, with NBD over TLS beside it."""
    if reason := Sshd.missing():
        pytest.skip(reason)
    with Sshd(lab.folder / "sshd", remote.second.beside) as sshd:
        options = f"keyfile={sshd.key}&no_verify=1&no_tty=1"
        host = backup_host(
            f"qemu+ssh://root@127.0.0.1:{sshd.port}/system?{options}", f'nbd_tls_dir = "{remote.pki}"'
        )
        remote.horse.write("vda", 6 * MiB, K64, 0x32)
        host.run("backup", remote.horse.name)
        compare(host, remote)


def test_nothing_goes_over_the_network_in_plain(remote: Remote, backup_host: Callable[..., Cli]) -> None:
    """Without certificates of ours, or of QEMU's, there is one sentence and no job."""
    for more, words in (
        ((), "only with TLS"),
        ((f'nbd_tls_dir = "{remote.scratch}"',), "cannot be used"),
    ):
        with pytest.raises(CliError, match=words) as caught:
            backup_host(remote.tls_uri, *more).run("backup", remote.horse.name)
        assert "exit code 1" in str(caught.value)
    assert remote.horse.domain.jobInfo()[0] == 0


def test_an_address_that_is_not_the_hypervisors(remote: Remote, backup_host: Callable[..., Cli]) -> None:
    """One sentence that names the key."""
    host = backup_host(remote.tls_uri, f'nbd_tls_dir = "{remote.pki}"', 'nbd_address = "192.0.2.1"')
    with pytest.raises(CliError, match="nbd_address must be one of the hypervisor's own"):
        host.run("backup", remote.horse.name)
    assert remote.horse.domain.jobInfo()[0] == 0


@pytest.mark.torture
def test_what_needs_the_hypervisors_files_is_refused(remote: Remote, backup_host: Callable[..., Cli]) -> None:
    """A guest that is off, a restore in place, a boot, a drill, tracking: one sentence each, which names the host."""
    host = backup_host(remote.tls_uri, f'nbd_tls_dir = "{remote.pki}"')
    host.run("backup", remote.horse.name)
    point = f"{remote.horse.name}@latest"
    remote.horse.stop()
    for command in (
        ["backup", remote.horse.name],
        ["restore", point, "--in-place"],
        ["boot", point, "--name", f"{remote.horse.name}-b"],
        ["drill", point],
        ["cbt", "enable", remote.horse.name, "vda"],
        ["cbt", "disable", remote.horse.name, "vda"],
        ["restore", point, "--output", str(host.folder / "x"), "--define", "--name", f"{remote.horse.name}-d"],
    ):
        with pytest.raises(CliError, match="files of localhost, which are out of reach"):
            host.run(*command)
    remote.horse.start()


@pytest.mark.torture
def test_a_port_that_is_taken(remote: Remote, backup_host: Callable[..., Cli]) -> None:
    """The next one is used; and where there is no other, that is what the error says."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        host = backup_host(
            remote.tls_uri, f'nbd_tls_dir = "{remote.pki}"', f'nbd_ports = "{port}-{port + 1}"'
        )
        for _ in range(2):
            host.run("backup", remote.horse.name)
        alone = backup_host(remote.tls_uri, f'nbd_tls_dir = "{remote.pki}"', f'nbd_ports = "{port}-{port}"')
        with pytest.raises(CliError, match="in use"):
            alone.run("backup", remote.horse.name)
    compare(host, remote)


def test_a_run_that_was_killed_is_put_right(remote: Remote, backup_host: Callable[..., Cli]) -> None:
    """Its job goes on at the hypervisor: the next run knows it by its scratch files, and ends it."""
    host = backup_host(remote.tls_uri, f'nbd_tls_dir = "{remote.pki}"')
    horse = remote.horse
    horse.write_data("vda", 0, random.Random(2).randbytes(7 * MiB))
    first = host.run("backup", horse.name)
    kill_once_begun(host, horse)
    horse.write("vda", 7 * MiB, K64, 0x33)
    done = host.run("backup", horse.name)
    assert modes(done) == [("incremental", K64)]
    assert done["points"][0]["parent"] == first["points"][0]["id"]
    compare(host, remote)
    assert len(horse.checkpoints()) >= 1


def is_backing_up(horse: Workhorse) -> bool:
    """Whether its job has begun."""
    try:
        horse.domain.backupGetXMLDesc(0)
    except libvirt.libvirtError:
        return False
    return True


def kill_once_begun(host: Cli, horse: Workhorse) -> None:
    """A backup that dies as its job runs."""
    process = subprocess.Popen(host.command("backup", horse.name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not is_backing_up(horse):
        assert process.poll() is None, "it ended before it was killed"
    process.kill()
    process.wait()
