"""`make demo`: a real guest is backed up while it runs, changed, backed up again, restored and compared.

    python -m tests.lab.demo

Uses the public command only, with a repository of its own, and leaves nothing behind but the cached image
of the guest. Exit codes: 0 shown and all equal, 1 failed (the text says what), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine
from .cli import Cli, CliError
from .disk import Disk, GiB, same_content
from .guest import Guest
from .guest_image import GuestImage, GuestImageError, guest_image
from .inspect_image import check_ext4, hashes, to_raw
from .libvirtd import LibvirtUnavailableError
from .session import Lab

FOLDERS = ("/srv", "/etc")   # whose files are compared one by one
LIST_FILES = f"find {' '.join(FOLDERS)} -type f -print0 | sort -z | xargs -0 sha256sum"

FIRST_DATA = """
mkdir /srv/files
head -c 12M /dev/urandom | split -d -a 3 -b 40K - /srv/files/first-
head -c 64M /dev/urandom | dd of=/dev/vdb bs=1M iflag=fullblock oflag=direct status=none
setsid sh -c 'while :; do date >> /var/log/ticks; sleep 0.2; done' > /dev/null 2>&1 &
sync
"""
CHANGES = """
head -c 4M /dev/urandom | split -d -a 3 -b 40K - /srv/files/second-
rm /srv/files/first-1*
for file in /srv/files/first-2*; do echo changed >> $file; done
head -c 4M /dev/urandom | dd of=/dev/vdb bs=1M seek=10 iflag=fullblock oflag=direct status=none
dd if=/dev/zero of=/dev/vdb bs=1M seek=20 count=8 oflag=direct status=none
blkdiscard -o 40M -l 8M /dev/vdb
sync
"""
TOLD_CHANGES = (
    "vda: 103 files written, 100 deleted, 100 appended to; a process goes on writing all the time",
    "vdb: 4 MiB overwritten, 8 MiB zeroed, 8 MiB discarded",
)


class MismatchError(Exception):
    """Something restored is not what it was."""


@dataclass(frozen=True)
class Moment:
    """One restore point, and what the guest's disks held at that instant, seen without vmbackup."""

    point: str
    files: dict[str, str]
    volume: Path


class Demo:
    """The steps, each of which prints what it did."""

    def __init__(self, lab: Lab, image: GuestImage) -> None:
        self._lab = lab
        self._image = image
        self._folder = lab.new_folder("demo")
        self._cli = Cli(self._folder)
        self._guest = Guest(lab, image, disks=[Disk("vdb", GiB)])

    def run(self) -> None:
        """All of it. Raises MismatchError, CliError and what the lab raises."""
        with step("1. A guest: Debian 12 on vda (4 GiB), a volume without file system on vdb (1 GiB)"):
            self._boot()
        with step("2. Full backup, while the guest runs"):
            self._cli.run("init")
            first = self._backup("full")
        with step("3. Changes inside the guest"):
            self._guest.agent.run(CHANGES)
            say(*TOLD_CHANGES)
        with step("4. Incremental backup, while the guest runs"):
            second = self._backup("incremental")
        for number, moment in ((5, first), (6, second)):
            with step(f"{number}. Restore {moment.point}, and compare it with the guest at that time"):
                self._restore(moment)
        with step("7. Boot the guest from the restored disks"):
            self._boot_restored(second)

    def _boot(self) -> None:
        kind = "KVM" if machine.kvm_works() else "emulation: this CPU offers no virtualisation, so the guest is slow"
        seconds = self._guest.boot()
        say(f"runs under {kind}; its agent answered after {seconds:.0f} s")
        self._guest.agent.run(FIRST_DATA)
        say("12 MiB of files and 64 MiB of random data on the volume written")

    def _backup(self, mode: str) -> Moment:
        files = read_hashes(self._guest.agent.run(LIST_FILES))
        volume = self._guest.copy("vdb", self._folder / f"vdb-{mode}.qcow2")
        point = self._cli.run("backup", self._guest.name)["points"][0]
        say(f"{'disk':6}{'mode':14}{'read':>12}{'changed':>12}{'stored':>12}")
        for disk in point["disks"]:
            figures = "".join(f"{size(disk[key]):>12}" for key in ("read_bytes", "changed_bytes", "stored_bytes"))
            say(f"{disk['target']:6}{disk['mode']:14}{figures}")
            if disk["mode"] != mode:
                raise MismatchError(f"{disk['target']} was read as {disk['mode']}: {disk['reason']}")
        say(told_consistency(point))
        return Moment(point["id"], files, volume)

    def _restore(self, moment: Moment) -> None:
        output = self._folder / moment.point
        answer = self._cli.run("restore", moment.point, "--output", str(output))
        for file in answer["files"]:
            say(f"{file['target']}: {size(file['written_bytes'])} written to {file['format']}")
        difference = same_content(moment.volume, output / "vdb.qcow2")
        if difference is not None:
            raise MismatchError(difference)
        say("vdb: identical in every byte to the copy made at that time")
        raw = to_raw(output / "vda.qcow2", output / "vda.raw")
        check_ext4(raw)
        (output / "files").mkdir()
        compare_files(moment.files, hashes(raw, FOLDERS, output / "files"))
        raw.unlink()
        say(f"vda: file system clean; its {len(moment.files)} files below {' and '.join(FOLDERS)} have "
            "the names and SHA-256 of then")

    def _boot_restored(self, moment: Moment) -> None:
        self._guest.remove()
        guest = Guest(self._lab, self._image, root=self._folder / moment.point / "vda.qcow2")
        seconds = guest.boot()
        compare_files(moment.files, read_hashes(guest.agent.run(LIST_FILES)), ignore="/etc/")
        say(f"it runs: its agent answered after {seconds:.0f} s, and inside it the files below /srv are the same")
        guest.remove()


def told_consistency(point: dict[str, Any]) -> str:
    """The line below a backup's table."""
    if point["consistency"] == "crash":
        frozen = f"crash-consistent ({point.get('quiesce_note') or 'not frozen'})"
    else:
        frozen = f"{point['consistency']}-consistent: guest frozen for {point['freeze_seconds'] * 1000:.0f} ms"
    proof = f"{point['seal_seconds']:.1f} s of it to prove that the point in time held to the last byte"
    return f"{frozen}; {point['duration_seconds']:.1f} s in all, {proof}"


def read_hashes(text: str) -> dict[str, str]:
    """sha256sum's output as path -> hash."""
    lines = (line.split("  ", 1) for line in text.splitlines())
    return {path: digest for digest, path in lines}


def compare_files(then: dict[str, str], now: dict[str, str], ignore: str | None = None) -> None:
    """Raises MismatchError with some names unless both hold the same files; `ignore` is a path's beginning."""
    differ = [path for path in sorted(then.keys() | now.keys())
              if then.get(path) != now.get(path) and not (ignore and path.startswith(ignore))]
    if differ or not then:
        raise MismatchError(f"{len(differ)} files differ: {', '.join(differ[:5])}")


def size(count: int) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def say(*lines: str) -> None:
    """Prints below the current step."""
    for line in lines:
        print(f"   {line}", flush=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Prints a title and, when the step is done, the time it took."""
    print(f"\n{title}", flush=True)
    start = time.monotonic()
    yield
    say(f"[{time.monotonic() - start:.1f} s]")


def _interrupt(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)   # cleaning up is not interrupted again
    raise KeyboardInterrupt


def main() -> int:
    """Shows it and returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    start = time.monotonic()
    try:
        reason = machine.missing()
        if reason:
            raise LibvirtUnavailableError(reason)
        image = guest_image(lambda text: print(text, flush=True))
        with Lab() as lab:
            if lab.started_libvirt:
                print("libvirt did not run: started for the time of this demo")
            Demo(lab, image).run()
    except KeyboardInterrupt:
        print("\ninterrupted: everything of the demo has been taken away again", file=sys.stderr)
        return 130
    except (MismatchError, CliError, GuestImageError, LibvirtUnavailableError, AssertionError, TimeoutError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    print(f"\nAll equal, in {time.monotonic() - start:.0f} s. Guest, repository and scratch files are gone; the "
          f"guest's image stays for next time in {machine.CACHE_DIR}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
