"""What `qemu-img` says of an image."""

import json
import subprocess
from dataclasses import dataclass, field
from typing import Any

from vmbackup.errors import HypervisorError

# Seconds. It reads a header; longer means storage that hangs.
_TIMEOUT = 30.0
_MAGIC = b"QFI\xfb"


@dataclass(frozen=True)
class ImageInfo:
    """An image's header. `bitmaps` name -> flags ("auto" = recording, "in-use" = inconsistent or loaded)."""

    path: str
    format: str
    virtual_size: int
    attributes: dict[str, str] = field(default_factory=dict)
    bitmaps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    backing: str | None = None
    backing_format: str | None = None

    @property
    def holds_bitmaps(self) -> bool:
        """True for qcow2 of version 3."""
        return self.format == "qcow2" and self.attributes.get("compat") != "0.10"


def image_chain(path: str, driver: str | None = None) -> list[ImageInfo]:
    """The image and its backing images, top first; also while QEMU has it open. Raises HypervisorError.

    `driver`: the image's, as qcow2; else its content tells, which for a raw disk is the guest's to choose.
    """
    command = ["qemu-img", "info", "-U", "--output=json", "--backing-chain", *_told(driver), "--", path]
    return [_parse(entry) for entry in json.loads(run_tool(command))]


def image_info(path: str, driver: str | None = None) -> ImageInfo:
    """The image alone; also while QEMU has it open. `driver` as for `image_chain`. Raises HypervisorError."""
    return _parse(json.loads(run_tool(["qemu-img", "info", "-U", "--output=json", *_told(driver), "--", path])))


def _told(driver: str | None) -> list[str]:
    return ["-f", driver] if driver else []


def holds_qcow2(path: str) -> bool:
    """Whether a file or device begins as a qcow2 image does; False where there is none. Raises HypervisorError."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HypervisorError(f"{path} cannot be read: {error.strerror}") from error


def _parse(entry: dict[str, Any]) -> ImageInfo:
    data = entry.get("format-specific", {}).get("data", {})
    attributes = {
        key.replace("-", "_"): _plain(value)
        for key, value in data.items()
        if isinstance(value, str | bool | int) and key not in ("corrupt", "filename")
    }
    if "cluster-size" in entry:
        attributes["cluster_size"] = str(entry["cluster-size"])
    if entry.get("encrypted"):
        attributes["encryption"] = str(data.get("encrypt", {}).get("format", "yes"))
    return ImageInfo(
        path=entry["filename"],
        format=entry["format"],
        virtual_size=entry["virtual-size"],
        attributes=attributes,
        bitmaps={bitmap["name"]: tuple(bitmap["flags"]) for bitmap in data.get("bitmaps", ())},
        backing=entry.get("full-backing-filename"),
        backing_format=entry.get("backing-filename-format"),
    )


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_tool(command: list[str], timeout: float | None = _TIMEOUT) -> str:
    """What it prints; `timeout` in seconds. Raises HypervisorError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise HypervisorError("the program qemu-img is missing", "install it: apt install qemu-utils") from error
    except subprocess.TimeoutExpired as error:
        raise HypervisorError(f"{command[-1]} cannot be read: no answer in {_TIMEOUT:.0f} s") from error
    if done.returncode:
        if "Is another process using the image" in done.stderr:
            raise HypervisorError(f"another process has {command[-1]} open")
        # What `compare` finds stands on its standard output.
        said = done.stderr.strip() or done.stdout.strip()
        lines = said.splitlines() or [f"exit code {done.returncode}"]
        raise HypervisorError(lines[-1].removeprefix("qemu-img: "))
    return done.stdout
