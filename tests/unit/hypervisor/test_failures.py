"""libvirt's errors, as it words them, become ours."""

from __future__ import annotations

import pytest

from vmbackup.errors import HypervisorError, JobConflictError, NotFoundError, QuiesceError, VmbackupError
from vmbackup.hypervisor.failures import absent_bitmap_disk, broken_disk, text_of, translate


class LibvirtError(Exception):
    """Speaks as libvirt.libvirtError does."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text

    def get_error_code(self) -> int:
        return self.code

    def get_error_message(self) -> str:
        return self.text


@pytest.mark.parametrize(
    ("code", "text", "kind", "hint"),
    [
        (68, "Timed out during operation: cannot acquire state change lock (held by monitor=x)",
         JobConflictError, "virsh domjobinfo web1"),
        (68, "cannot acquire state change lock (held by agent=remoteDispatchDomainFSFreeze)", QuiesceError, "agent"),
        (84, "cannot perform disk backup for inactive domain", HypervisorError, "virsh start web1"),
        (84, "disk 'vdb' already in active block job", JobConflictError, "blockjob"),
        (1, "internal error: disk 'vda' has a blockjob assigned", JobConflictError, "blockjob"),
        (84, "creating checkpoint for incremental backup is not supported yet", HypervisorError, "7.6"),
        (1, "internal error: unable to execute QEMU command 'nbd-server-start': NBD server already running",
         JobConflictError, "ended"),
        (1, "internal error: unable to execute QEMU command 'blockdev-add': Could not open '/s/x': Permission denied",
         HypervisorError, "0711"),
        (1, "unable to execute QEMU command 'blockdev-add': Could not open '/s/x': No such file or directory",
         HypervisorError, "restart web1"),
        (1, "unable to execute QEMU command 'nbd-server-start': Failed to bind socket to /x: Permission denied",
         HypervisorError, "AppArmor"),
        (1, "Can't make bitmap 'x' persistent: Cannot store dirty bitmaps in qcow2 v2 files", HypervisorError, "amend"),
        (38, "failed to create image file '/s/x': No such file or directory", HypervisorError, "0711"),
        (42, "Domain not found: no domain with matching uuid", NotFoundError, "virsh list"),
        (86, "Guest agent is not responding: QEMU guest agent is not connected", QuiesceError, "qemu-guest-agent"),
        (74, "argument unsupported: QEMU guest agent is not configured", QuiesceError, "channel"),
        (1, "unable to execute QEMU command 'nbd-server-start': Failed to bind socket: Cannot assign requested address",
         HypervisorError, "nbd_address"),
        (1, "unable to execute QEMU command 'object-add': Unable to access credentials /p/ca-cert.pem: No such file",
         HypervisorError, "backup_tls_x509_cert_dir"),
        (1, "unable to execute QEMU command 'object-add': Cannot load certificate '/p/c.pem' & key '/p/k.pem'",
         HypervisorError, "backup_tls_x509_cert_dir"),
        (1, "End of file from qemu monitor (vm='web1')", HypervisorError, "run the backup again"),
        (112, "guest agent command timed out: guest agent didn't respond to command within '1' seconds",
         QuiesceError, "restart qemu-guest-agent"),
        (999, "odd", HypervisorError, "journalctl -u libvirtd"),
        (39, "RPC: gone", HypervisorError, "systemctl status libvirtd"),
    ],
)  # fmt: skip
def test_each_known_error_has_a_kind_and_a_cure(code: int, text: str, kind: type[VmbackupError], hint: str) -> None:
    """Code first, text within the code."""
    error = translate(LibvirtError(code, text), "begin the backup", "web1")
    assert type(error) is kind
    assert hint in error.hint
    assert "{" not in error.message + error.hint


def test_an_unknown_error_says_what_was_tried() -> None:
    """libvirt's own sentence, without its class of error."""
    error = translate(LibvirtError(999, "internal error: odd"), "list the domains")
    assert error.message == "libvirt could not list the domains: odd"
    assert text_of(ValueError("plain")) == "plain"


def test_the_disk_of_a_bitmap_error() -> None:
    """Error 109 and the refusal of a delete name the disk."""
    broken = "checkpoint inconsistent: missing or broken bitmap 'X' for disk 'vdb'"
    assert broken_disk(LibvirtError(109, broken)) == "vdb"
    assert broken_disk(LibvirtError(1, broken)) is None
    assert (
        absent_bitmap_disk(LibvirtError(1, "internal error: bitmap 'X' not found in backing chain of 'vda'")) == "vda"
    )
    assert absent_bitmap_disk(LibvirtError(1, "odd")) is None
