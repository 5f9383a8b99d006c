"""A wrong file is told as a whole: every mistake, its line, its value, and what to do."""

import re
from pathlib import Path

import pytest

from vmbackup.config.load import find, load, parse
from vmbackup.config.mistakes import ConfigMistakesError, Mistake
from vmbackup.errors import ConfigError

SEVEN = """\
[libvirt]
uri = 5

[repositories.local]
url = "ftp://backup"
[repositories.offsite]
passphrase_file = "/etc/vmbackup/passphrase"

[jobs.nightly]
domians = ["*"]
quiesce = "requird"
repository = "locl"
max_age = "26 hours"
"""


def _mistakes(text: str) -> list[tuple[int | None, str, str]]:
    with pytest.raises(ConfigMistakesError) as caught:
        parse(text, "config.toml")
    return [(m.line, m.message, m.hint) for m in caught.value.mistakes]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigMistakesError) as caught:
        parse(SEVEN, "/etc/vmbackup/config.toml")
    assert str(caught.value) == (
        "/etc/vmbackup/config.toml has 8 mistakes:\n"
        "  /etc/vmbackup/config.toml:2: uri = 5 must be a text in quotes\n"
        '  /etc/vmbackup/config.toml:5: url = "ftp://backup" is not the address of a store: '
        "write file:///absolute/path or s3://bucket/prefix\n"
        '  /etc/vmbackup/config.toml:6: "url" is missing in [repositories.offsite]: add url = ...\n'
        '  /etc/vmbackup/config.toml:9: "domains" is missing in [jobs.nightly]: add domains = ...\n'
        '  /etc/vmbackup/config.toml:10: unknown key "domians" in [jobs.nightly]: did you mean "domains"?\n'
        '  /etc/vmbackup/config.toml:11: quiesce = "requird" is not possible: did you mean "required"?\n'
        '  /etc/vmbackup/config.toml:12: repository: there is no repository "locl": did you mean "local"?\n'
        "  /etc/vmbackup/config.toml:13: max_age: '26 hours' is not a duration: "
        "write a number and s, m, h, d or w, like 26h"
    )
    assert caught.value.exit_code == 2
    assert caught.value.hint == "correct /etc/vmbackup/config.toml"


def test_a_single_mistake_is_one_sentence_and_one_hint() -> None:
    with pytest.raises(ConfigMistakesError) as caught:
        parse("[libvrt]\n", "c.toml")
    assert str(caught.value) == 'c.toml:1: unknown key "libvrt" in the file'
    assert caught.value.hint == 'did you mean "libvirt"?'

DRILL = "[jobs.a]\ndomains = ['x']\n[jobs.a.drill]\nschedule = '@daily'"

HOOKS = "[jobs.a]\ndomains = ['x']\n[jobs.a.hooks]\ntimeout = '5s'"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[host]\ncache_dir = 'cache'", 2, 'cache_dir = "cache" is not an absolute path'),
        ("[host]\ncache_dir = 3", 2, "cache_dir = 3 must be a text in quotes"),
        ("[libvirt]\nnbd_ports = '10810'", 2, 'nbd_ports = "10810" is no range of ports'),
        ("[libvirt]\nnbd_ports = '20-10'", 2, 'nbd_ports = "20-10" is no range of ports'),
        ("[daemon]\nlisten = '9847'", 2, 'listen = "9847" is not HOST:PORT'),
        ("[daemon]\nlisten = 'localhost:99999'", 2, 'listen = "localhost:99999" is not HOST:PORT'),
        ("[daemon]\nmax_parallel_domains = 0", 2, "max_parallel_domains = 0 must be 1 or more"),
        ("[daemon]\nmax_parallel_domains = 2.5", 2, "max_parallel_domains = 2.5 must be a whole number"),
        ("[daemon]\nmax_parallel_domains = true", 2, "max_parallel_domains = true must be a whole number"),
        ("libvirt = 3", 1, "libvirt = 3 must be a table"),
        ("jobs = 3", 1, "jobs = 3 must be a table"),
        ("[jobs.a]\ndomains = 'x'", 2, 'domains = "x" must be a list, like ["*"]'),
        ("[jobs.a]\ndomains = []", 2, "domains must not be empty"),
        ("[jobs.a]\ndomains = ['x']\nexclude = ['']", 3, 'exclude = "" must not be empty'),
        ("[jobs.a]\ndomains = ['x', 4]", 2, "domains = 4 must be a text in quotes"),
        (
            "[jobs.a]\ndomains = ['x']\ntimezone = 'Europe/Berln'",
            3,
            'timezone = "Europe/Berln" is not a time zone',
        ),
        (
            "[jobs.a]\ndomains = ['x']\nbandwidth_limit = '200MiB'",
            3,
            "bandwidth_limit: '200MiB' is not a rate",
        ),
        ("[jobs.a]\ndomains = ['x']\nmax_age = '0h'", 3, "max_age: '0h' is not a duration"),
        (
            "[jobs.a]\ndomains = ['x']\nconsistency_group = 'yes'",
            3,
            'consistency_group = "yes" must be true or false',
        ),
        ("[jobs.a]\ndomains = ['x']\nkeep = {}", 3, "keep is empty"),
        ("[jobs.a]\ndomains = ['x']\nkeep = { lst = 3 }", 3, 'unknown key "lst" in [jobs.a.keep]'),
        ("[jobs.a]\ndomains = ['x']\nkeep = { last = 0 }", 3, "last = 0 must be 1 or more"),
        ("[jobs.a]\ndomains = ['x']\nkeep.within = '3x'", 3, "within: '3x' is not a duration"),
        ("[jobs.a]\ndomains = ['x']\nschedule = '0 2 30 2 *'", 3, "schedule: '0 2 30 2 *' never comes due"),
        ("[jobs.a]\ndomains = ['x']\n[jobs.a.drill]\n", 3, '"schedule" is missing in [jobs.a.drill]'),
        (f"{DRILL}\nconsole = 'log(in'", 5, 'console = "log(in" is no regular expression'),
        (f"{DRILL}\nmemory = '1MiB'", 5, "memory: '1MiB' is less than any guest boots in"),
        (f"{DRILL}\nfiles = ['etc/hostname']", 5, 'names "etc/hostname", which is no absolute path'),
        (f"{DRILL}\ncommands = ['/bin/true']", 5, 'commands = "/bin/true" must be a list'),
        (f"{DRILL}\ncommands = [[]]", 5, "commands must not be empty"),
        (f"{DRILL}\ncommand = ['/usr/local/bin/drill']", 5, 'unknown key "command" in [jobs.a.drill]'),
        (
            f"{DRILL}\n[repositories.a]\nurl = '/x'\nwriter_key_file = '/w'",
            3,
            'drill: repository "a" opens with a writer key',
        ),
        (f"{HOOKS}\nbefore = ['quiet-app']", 5, "before = ['quiet-app'] does not name a program by its absolute path"),
        (f"{HOOKS}\nguest_before = []", 5, "guest_before must not be empty"),
        (f"{HOOKS}\nbefor = ['/x']", 5, 'unknown key "befor" in [jobs.a.hooks]'),
        ("[jobs.a]\ndomains = ['x']\nfreeze_timeout = '2m'", 3, 'freeze_timeout = "2m" is not between 1s and 60s'),
        ("[jobs.a]\ndomains = ['x']\nfreeze_mounts = ['srv']", 3, 'names "srv", which is no absolute path'),
        (
            "[jobs.a]\ndomains = ['x']\nquiesce = 'never'\nfreeze_mounts = ['/srv']",
            4,
            'freeze_mounts with quiesce = "never", which freezes nothing',
        ),
        ("[jobs.'a b']\ndomains = ['x']", 1, '[jobs] has the unusable name "a b"'),
        ("[jobs.a]\ndomains = ['x']\ncopy_to = ['of']", 3, 'copy_to: there is no repository "of"'),
        ("[repositories.a]\nurl = '/x'\nregion = 'eu'", 3, "region is for s3:// addresses only"),
        (
            "[repositories.a]\nurl = 's3://bkt'\nprovider = 'hetzner:fsn1'\naccess_key_file = '/k'",
            4,
            "access_key_file without secret_key_file",
        ),
        (
            "[repositories.a]\nurl = 's3://bkt'\nprovider = 'hetzner:fsn1'\nsecret_key_credential = 'k'",
            4,
            "secret_key_credential without access_key_credential",
        ),
        (
            "[repositories.a]\nurl = '/x'\nwriter_key_file = '/w'\nwriter_key_credential = 'w'",
            4,
            "writer_key_file and writer_key_credential exclude each other",
        ),
        ("[repositories.a]\nurl = 's3://bkt'\nprovider = 'azure'", 3, 'provider = "azure" is not a provider'),
        (
            "[repositories.a]\nprovider = 'hetzner:fsn1'\nurl = 's3://key:secret@bkt'",
            3,
            "url = (hidden) is not the address of a store",
        ),
        ("[repositories.a]\nurl = 's3://bkt'", 2, "neither provider nor endpoint_url says where the bucket is"),
        ("[repositories.a]\nurl = 's3://bkt'\nprovider = 'ceph'", 3, 'provider = "ceph" has no address of its own'),
        ("[repositories.a]\nurl = 's3://bkt'\nprovider = 'hetzner'", 3, 'provider = "hetzner" says no place'),
        (
            "[repositories.a]\nurl = 's3://bkt'\nprovider = 'hetzner:fs1'",
            3,
            'provider = "hetzner:fs1" is no place of it',
        ),
        ("[repositories.a]\nprovider = 'aws:eu-west-1'\nurl = 's3://B_'", 3, 'url = "s3://B_" names no bucket'),
        ("[repositories.a]\nprovider = 'aws:eu-west-1'\nurl = 's3://bkt/a/../b'", 3, "names no bucket and prefix"),
        (
            "[repositories.a]\nurl = 's3://bkt'\nendpoint_url = 'https://h/bkt'",
            3,
            'endpoint_url = "https://h/bkt" is more than the address of a server',
        ),
        (
            "[repositories.a]\nurl = 's3://bkt'\nendpoint_url = 'https://u:p@h'",
            3,
            "endpoint_url = (hidden) is not the address of a server",
        ),
        (
            "[repositories.a]\nurl = 's3://bkt'\nprovider = 'hetzner:fsn1'\naddressing_style = 'dns'",
            4,
            'addressing_style = "dns" is not possible',
        ),
        (
            "[repositories.a]\nurl = '/x'\npassphrase_file = '/p'\npassphrase_command = 'c'",
            4,
            "passphrase_file and passphrase_command exclude each other",
        ),
        (
            "[repositories.a]\nurl = '/x'\n[jobs.j]\ndomains = ['x']\ncopy_to = ['a']",
            5,
            'copy_to: "a" is the repository',
        ),
    ],
)
def test_each_mistake_is_told_at_its_line(text: str, line: int, message: str) -> None:
    told = _mistakes(text)
    assert [(at, said) for at, said, _ in told if message in said and at == line], told
    assert len(told) == 1, told


def test_a_passphrase_in_the_file_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigMistakesError) as caught:
        parse("[repositories.a]\nurl = '/x'\npassphrase = 'hunter2'\n", "c.toml")
    assert "hunter2" not in str(caught.value)
    assert caught.value.hint == "a passphrase never stands in this file: use passphrase_file"


def test_a_secret_in_an_address_is_not_repeated() -> None:
    assert "hunter2" not in str(_mistakes("[repositories.a]\nurl = 's3://key:hunter2@bucket'\n"))


def test_a_secret_of_the_wrong_type_is_not_repeated() -> None:
    told = _mistakes("[repositories.a]\nurl = '/x'\npassphrase_command = ['hunter2']\n")
    assert "hunter2" not in str(told)


def test_a_command_is_masked_when_the_configuration_is_printed() -> None:
    config = parse("[repositories.a]\nurl = '/x'\npassphrase_command = 'echo hunter2'\n", "c.toml")
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[libvirt]\nuri = qemu\n", r"c\.toml:2: not valid TOML, column 7: invalid value"),
        ("[libvirt\n", r"c\.toml:1: not valid TOML, column 9: "),
        ("[a]\n[a]\n", r"c\.toml:2: not valid TOML, column 3: cannot declare"),
        ("x = '''\n", r"c\.toml:\d+: not valid TOML: "),
    ],
)
def test_broken_toml_is_told_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(ConfigMistakesError) as caught:
        parse(text, "c.toml")
    assert re.match(message, str(caught.value)), str(caught.value)


def test_lines_are_found_behind_strings_and_lists_of_many_lines() -> None:
    text = '[jobs.a]\ndomains = [\n  "x", # ]\n  "[fake]",\n]\nexclude = ["""\nquiesce = 1\n"""]\nquiesce = 2\n'
    assert _mistakes(text)[0][0] == 9


def test_quoted_and_dotted_keys_have_lines() -> None:
    assert _mistakes("[jobs]\n'a'.domains = ['x']\n'a'.\"max_age\" = '1'\n")[0][0] == 3


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path)


def test_the_place_of_the_file(tmp_path: Path) -> None:
    assert find("/a", {"VMBACKUP_CONFIG": "/b"}) == Path("/a")
    assert find(None, {"VMBACKUP_CONFIG": "/b"}) == Path("/b")


def test_without_a_file_there_is_a_local_repository() -> None:
    local = load(None).repositories["local"]
    assert local.url == "file:///var/lib/vmbackup/repository"
    assert local.passphrase_file == Path("/var/lib/vmbackup/passphrase")


def test_a_file_without_repositories_has_the_local_one_in_its_state_dir() -> None:
    text = '[daemon]\nstate_dir = "/x"\n[jobs.a]\ndomains = ["*"]\nrepository = "local"\n'
    assert parse(text, "c.toml").repositories["local"].url == "file:///x/repository"


def test_a_mistake_without_a_line_names_the_file() -> None:
    assert ConfigMistakesError("c.toml", [Mistake((), "is odd")]).lines() == ["c.toml: is odd"]


@pytest.mark.parametrize("deep", ["[", "{a = "])
def test_what_nests_too_deeply_is_a_mistake_too(deep: str) -> None:
    """Not a fault of the program: a service that reloads it must live on."""
    with pytest.raises(ConfigError, match="nests its values too deeply"):
        parse("x = " + deep * 5000, "c.toml")


@pytest.mark.parametrize("url", ["htps://hc.example.org/secretping", "https://hc.example.org/secret ping"])
def test_a_wrong_ping_is_not_repeated(url: str) -> None:
    """Its path is as good as a password; one that could never be fetched is a mistake."""
    with pytest.raises(ConfigMistakesError) as caught:
        parse(f'[jobs.a]\ndomains = ["*"]\nping_url = "{url}"\n', "c.toml")
    assert "not a web address" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("schedule", "longest"), [("@every 15m", 15), ("30 22 * * *", 24 * 60), ("0 1,2 * * 1", 60)])
def test_a_window_ends_before_the_next_time(schedule: str, longest: int) -> None:
    job = '[jobs.nightly]\ndomains = ["*"]\nschedule = "{}"\nwindow = "{}m"\n'
    parse(job.format(schedule, longest), "config.toml")
    ((line, told, hint),) = _mistakes(job.format(schedule, longest + 1))
    assert line == 4
    assert told.startswith(f'window = "{longest + 1}m" is longer than the ')
    assert hint == "make it shorter, or the schedule rarer"
