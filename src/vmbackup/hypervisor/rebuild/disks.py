"""The guest's disks where they lie now; other drives as far as their media are here."""

from vmbackup.hypervisor.disk_element import driver_of, target_of
from vmbackup.hypervisor.rebuild.draft import Draft, add, drop
from vmbackup.hypervisor.rebuild.wishes import NbdSource, NewDisk
from vmbackup.hypervisor.xmltree import Element, element

# <reconnect> in the source of a network disk: libvirt 9.2.
_RECONNECT = 9_002_000
# What belongs to the old image, not to the guest's drive.
_OF_THE_IMAGE = ("backingStore", "mirror", "source")
_QCOW2_ONLY = ("discard_no_unref",)


def fit(draft: Draft) -> None:
    """Every <disk>."""
    for disk in draft.devices.findall("disk"):
        target = target_of(disk)
        new = draft.wishes.disks.get(target)
        if new is not None:
            place(draft, disk, new)
        elif disk.get("device") in ("cdrom", "floppy"):
            _medium(draft, disk, target)
        else:
            _not_restored(draft, disk, target)


def place(draft: Draft, disk: Element, new: NewDisk) -> None:
    """Points a <disk> at its new image and keeps all that describes the drive."""
    encryption = _encryption(disk)
    had_source = disk.find("source")
    position = list(disk).index(had_source) if had_source is not None else 0
    drop(disk, *_OF_THE_IMAGE, "encryption", "auth", "shareable", "transient")
    kind, source = _source(draft, new)
    disk.set("type", kind)
    disk.insert(min(position, len(disk)), source)
    if new.backing is not None:
        disk.insert(list(disk).index(source) + 1, _backing(draft, new.backing))
    if encryption is not None and new.encrypted:
        source.append(encryption)
        _require_secret(draft, encryption)
    elif new.encrypted:
        draft.lack(
            "secrets",
            f"the image of disk {target_of(disk)} is encrypted, and the guest's definition names no secret for it",
            "restore it with --plain, or define the guest by hand",
        )
    elif encryption is not None:
        draft.warn(f"disk {target_of(disk)} was encrypted on its host, and is not any more")
    _driver(disk, new)


def _encryption(disk: Element) -> Element | None:
    inside = disk.find("./source/encryption")
    return inside if inside is not None else disk.find("encryption")


def _require_secret(draft: Draft, encryption: Element) -> None:
    for secret in encryption.findall("secret"):
        name = secret.get("uuid") or secret.get("usage") or ""
        if name not in draft.host.secrets:
            draft.lack(
                "secrets",
                f"an image is encrypted with libvirt's secret {name}, which is not here",
                "define it with its value ('virsh secret-define', 'virsh secret-set-value') and do it again",
            )


def _source(draft: Draft, new: NewDisk) -> tuple[str, Element]:
    if isinstance(new.source, NbdSource):
        return "network", _nbd(draft, new.source)
    if new.block:
        return "block", element("source", {"dev": str(new.source)})
    return "file", element("source", {"file": str(new.source)})


def _nbd(draft: Draft, nbd: NbdSource) -> Element:
    source = element("source", {"protocol": "nbd", "name": nbd.export})
    if nbd.socket is not None:
        add(source, "host", {"transport": "unix", "socket": str(nbd.socket)})
    else:
        add(source, "host", {"name": nbd.host, "port": str(nbd.port)})
    if nbd.reconnect_seconds is not None and draft.host.libvirt >= _RECONNECT:
        add(source, "reconnect", {"delay": str(nbd.reconnect_seconds)})
    return source


def _backing(draft: Draft, nbd: NbdSource) -> Element:
    return element(
        "backingStore", {"type": "network"}, None,
        element("format", {"type": "raw"}), _nbd(draft, nbd), element("backingStore"),
    )  # fmt: skip


def _driver(disk: Element, new: NewDisk) -> None:
    driver = driver_of(disk)
    driver.set("type", new.format)
    for name, value in new.driver.items():
        if value is None:
            driver.attrib.pop(name, None)
        else:
            driver.set(name, value)
    if new.format != "qcow2":
        drop(driver, "metadata_cache")
        for name in _QCOW2_ONLY:
            driver.attrib.pop(name, None)
    # io='native' is refused without a cache mode that goes past the page cache.
    if driver.get("io") == "native" and driver.get("cache") not in ("none", "directsync"):
        del driver.attrib["io"]


def _medium(draft: Draft, disk: Element, target: str) -> None:
    source = disk.find("source")
    path = _path(source)
    in_pool = disk.get("type") == "volume" and source is not None
    if not in_pool and (not path or draft.host.present(path)):
        return  # no medium, one that is here, or one that is fetched over the network
    drop(disk, *_OF_THE_IMAGE)
    disk.set("type", "file")
    what = f"volume {source.get('volume')}" if source is not None and in_pool else path
    draft.note(f"the medium {what} in drive {target} is not here: the drive is empty")


def _path(source: Element | None) -> str:
    return "" if source is None else source.get("file") or source.get("dev") or source.get("dir") or ""


def _not_restored(draft: Draft, disk: Element, target: str) -> None:
    """A drive that restores leave out (shared, passed through) stays where its image is here; a plain one goes."""
    path = _path(disk.find("source"))
    of_the_host = disk.get("device") == "lun" or any(disk.find(tag) is not None for tag in ("shareable", "readonly"))
    if of_the_host and path and draft.host.present(path):
        draft.note(f"disk {target} is not in the restore point: the guest gets {path} of this host")
        return
    draft.devices.remove(disk)
    if of_the_host:
        draft.lack(
            "disks",
            f"disk {target} is not in the restore point, and {path or 'its source'} is not here",
            "connect it, or let the guest do without: --without disks",
        )
    else:
        draft.warn(f"disk {target} is not restored: the guest is defined without it")
