"""libvirt's XML, read and written. What is read comes from the local libvirt, or from a signed restore point."""

import xml.etree.ElementTree as ET

Element = ET.Element
_MOST = 16 << 20  # characters: what libvirt itself takes


def parse(text: str) -> Element:
    """The root of a document. Raises ValueError where it is none, is huge, or may define entities."""
    if len(text) > _MOST or "<!DOCTYPE" in text:
        raise ValueError("not XML of libvirt's")
    try:
        return ET.fromstring(text)  # noqa: S314 (see above)
    except ET.ParseError as error:
        raise ValueError(f"not XML: {error}") from error


def element(tag: str, attributes: dict[str, str] | None = None, text: str | None = None, *children: Element) -> Element:
    """An element with attributes, text and children."""
    made = ET.Element(tag, attributes or {})
    made.text = text
    made.extend(children)
    return made


def render(root: Element) -> str:
    """The document as text."""
    return ET.tostring(root, encoding="unicode")
