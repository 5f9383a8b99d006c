"""Screens and what draws on them: video cards, VNC and SPICE."""

from vmbackup.hypervisor.rebuild.draft import Draft
from vmbackup.hypervisor.xmltree import Element

_ANY_ADDRESS = ("", "0.0.0.0", "::", "127.0.0.1", "::1", "localhost")  # noqa: S104 (compared, not bound)


def fit(draft: Draft) -> None:
    """Every one."""
    for screen in draft.devices.findall("graphics"):
        _screen(draft, screen)
    if not draft.allows("graphics", "spice"):
        _without_spice(draft)
    for video in draft.devices.findall("./video/model"):
        kind = video.get("type", "")
        if not draft.allows("video", kind):
            instead = "virtio" if draft.allows("video", "virtio") else "vga"
            # Memory sizes are those of the other card.
            for name in ("ram", "vram", "vgamem", "vram64"):
                video.attrib.pop(name, None)
            video.set("type", instead)
            draft.note(f"this host's QEMU has no video card {kind}: {instead} instead")


def _screen(draft: Draft, screen: Element) -> None:
    kind = screen.get("type", "")
    if kind == "spice" and not draft.allows("graphics", "spice"):
        screen.set("type", "vnc")
        for name in ("tlsPort", "defaultMode"):
            screen.attrib.pop(name, None)
        for child in list(screen):
            if child.tag != "listen":
                screen.remove(child)
        draft.note("this host's QEMU has no SPICE: the guest's screen is VNC")
    if draft.clone and screen.get("autoport", "no") != "yes" and screen.get("port", "-1") != "-1":
        draft.note(f"the port {screen.get('port')} of the guest's screen is the original's: it gets a free one")
        screen.set("port", "-1")
        screen.set("autoport", "yes")
        screen.attrib.pop("tlsPort", None)
    _listen(draft, screen)


def _listen(draft: Draft, screen: Element) -> None:
    known = draft.host.addresses
    for listen in screen.findall("listen"):
        network, address = listen.get("network"), listen.get("address", "")
        if network and network not in draft.host.networks:
            listen.attrib.pop("network")
            listen.set("type", "address")
            listen.set("address", "127.0.0.1")
            draft.note(f"the guest's screen listened on network {network}, not here: on 127.0.0.1 instead")
        elif not network and address not in _ANY_ADDRESS and known is not None and address not in known:
            listen.set("address", "127.0.0.1")
            draft.note(f"the guest's screen listened on {address}, not of this host: on 127.0.0.1 instead")
        elif draft.clone and listen.get("type") == "socket":
            listen.attrib.pop("socket", None)
    first = screen.find("listen")
    if screen.get("listen") is not None:
        screen.attrib.pop("listen")
        if first is not None and first.get("address"):
            screen.set("listen", first.get("address", ""))


def _without_spice(draft: Draft) -> None:
    """What only SPICE's client can use."""
    for tag in ("channel", "redirdev"):
        for each in draft.devices.findall(f"{tag}[@type='spicevmc']"):
            draft.devices.remove(each)
    for audio in draft.devices.findall("audio"):
        if audio.get("type") == "spice":
            audio.set("type", "none")
