"""The options of `restore --define`: what they add up to, and what of them is refused."""

from __future__ import annotations

from typing import Any

import pytest

from vmbackup.cli import define_options
from vmbackup.cli.define_options import DefinedGuest, DefineRequest, PlannedGuest
from vmbackup.errors import HypervisorError, UsageError
from vmbackup.hypervisor.define.define import Definition
from vmbackup.hypervisor.rebuild.wishes import OPTIONAL, Rebuilt

NONE: dict[str, Any] = {
    "define": False, "name": None, "keep_mac": False, "keep_uuid": False, "networks": (), "without": (), "start": False,
}  # fmt: skip
REBUILT = Rebuilt("<domain/>", "web2", "u-u-i-d", ("a note",), (), warnings=("a warning",))


class Host:
    """Fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.calls = failing, []

    def define(self, _definition: Definition) -> None:
        self._call("define")

    def start(self, _name: str) -> None:
        self._call("start")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise HypervisorError(f"no {name}", "a hint")


def request(**options: Any) -> DefineRequest:
    made = DefineRequest.of({**NONE, "define": True, **options})
    assert made is not None
    return made


def test_help_names_what_a_guest_may_do_without() -> None:
    """The same words as the hypervisor's."""
    assert define_options._OPTIONAL == OPTIONAL


def test_no_define() -> None:
    assert DefineRequest.of(NONE) is None


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("name", "x", "--name"), ("keep_mac", True, "--keep-mac"), ("keep_uuid", True, "--keep-uuid"),
        ("networks", ("a=b",), "--network"), ("without", ("tpm",), "--without"), ("start", True, "--start"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing(option: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"{said} goes with --define"):
        DefineRequest.of({**NONE, option: value})


def test_networks() -> None:
    assert request(networks=("prod=br0", "*=none", "a=bridge:b=c")).networks == {
        "prod": "br0", "*": "none", "a": "bridge:b=c",
    }  # fmt: skip
    for wrong in ("prod", "=br0", "prod=", "="):
        with pytest.raises(UsageError, match="maps nothing"):
            request(networks=(wrong,))


def test_what_is_told_of_the_guest() -> None:
    """That it is there, and runs or not, and what was changed."""
    definition = Definition(REBUILT, {}, None, ("a warning",))
    host: Any = Host()
    made = request(start=True).carry_out(host, definition)
    assert host.calls == ["define", "start"]
    assert made == DefinedGuest("web2", "u-u-i-d", True, ("a note",), ("a warning",))
    assert made.lines() == ["domain web2 is defined (UUID u-u-i-d) and runs", "  a note"]
    assert made.document() == {"name": "web2", "uuid": "u-u-i-d", "started": True, "notes": ["a note"]}
    off = request().carry_out(host, definition)
    assert off.lines()[0] == "domain web2 is defined (UUID u-u-i-d) and is off: virsh start web2"


def test_a_define_that_fails_says_what_is_there() -> None:
    """The disks are; nobody restores them again."""
    host: Any = Host("define")
    with pytest.raises(HypervisorError) as error:
        request(start=True).carry_out(host, Definition(REBUILT, {}, None, ()))
    assert str(error.value) == "the disks are restored, but the guest could not be defined: no define"
    assert error.value.hint == "a hint"
    assert host.calls == ["define"]


def test_what_would_be_told() -> None:
    """After a --dry-run: nothing was done."""
    host: Any = Host()
    definition = Definition(REBUILT, {}, None, ("a warning",))
    planned = PlannedGuest(definition, lambda: request().carry_out(host, definition))
    assert planned.lines() == ["domain web2 would be defined", "  a note", "  warning: a warning"]
    assert planned.document() == {"name": "web2", "notes": ["a note"], "warnings": ["a warning"]}
    assert host.calls == []
    assert planned.carry_out().name == "web2"
