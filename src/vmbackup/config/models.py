"""What the configuration file may hold: strict, frozen, unknown keys are mistakes.

Explained key by key in config.example.toml. What one key asks of another is in checks.py.
"""

import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from vmbackup.config.schedule import check_schedule
from vmbackup.config.units import InvalidValue, parse_duration, parse_price, parse_rate, parse_size
from vmbackup.storage_backends.base import BadStoreUrl
from vmbackup.storage_backends.s3_settings import bucket_and_prefix

DEFAULT_REPOSITORY = "local"  # the repository of a file that names none
DEFAULT_STATE_DIR = Path("/var/lib/vmbackup")
_LEAST_MEMORY = 64 << 20
_LONGEST_FREEZE = 60  # seconds
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def _from_text(parse: Callable[[str], Any], example: str) -> BeforeValidator:
    def convert(value: object) -> Any:
        if not isinstance(value, str):
            raise InvalidValue("must be a text in quotes", f"write it like {example}")
        return parse(value)

    return BeforeValidator(convert)


def _absolute(value: str) -> Path:
    if not value.startswith("/"):
        raise InvalidValue("is not an absolute path", "start it with /")
    if "\0" in value:
        raise InvalidValue("holds a NUL byte", "")
    return Path(value)


def _ports(value: str) -> tuple[int, int]:
    first, dash, last = value.partition("-")
    if not (first.isdecimal() and dash and last.isdecimal() and 1024 <= int(first) <= int(last) < 1 << 16):
        raise InvalidValue("is no range of ports", 'write the first and the last, from 1024 on: "10810-10899"')
    return int(first), int(last)


def _store_url(value: str) -> str:
    scheme = urlsplit(value).scheme if "://" in value else ""
    if value.startswith("/") or (scheme == "file" and value.startswith("file:///")):
        return value
    if scheme == "s3" and "@" not in value:
        try:
            bucket_and_prefix(value)
        except BadStoreUrl:
            hint = "write s3://bucket/prefix: a bucket of a-z, 0-9, - and ., a prefix of plain names between slashes"
            raise InvalidValue("names no bucket and prefix", hint) from None
        return value
    hint = "write file:///absolute/path or s3://bucket/prefix"
    raise InvalidValue("is not the address of a store", hint)


def _endpoint(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InvalidValue("is not the address of a server", "write https://HOST or https://HOST:PORT")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidValue("is more than the address of a server", "the bucket stands in url; write https://HOST")
    return value


def _listen(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidValue("is not HOST:PORT", "write it like 127.0.0.1:9847")
    return value


def _timezone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidValue("is not a time zone", 'write a name like "Europe/Berlin" or "UTC"') from None
    return value


def _program(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value[0].startswith("/"):
        raise InvalidValue("does not name a program by its absolute path", "start it with /")
    return value


def check_pattern(value: str) -> str:
    """A regular expression. InvalidValue."""
    try:
        re.compile(value)
    except re.error as error:
        raise InvalidValue(f"is no regular expression: {error}", 'write a line\'s text, like "login:"') from None
    return value


def check_memory(value: str) -> int:
    """Bytes that a guest may boot in. InvalidValue."""
    size = parse_size(value)
    if size < _LEAST_MEMORY:
        raise InvalidValue(f"{value!r} is less than any guest boots in", "write 64MiB or more")
    return size


def _in_guest(value: tuple[str, ...]) -> tuple[str, ...]:
    for path in value:
        if not path.startswith("/") and not re.match(r"[A-Za-z]:[\\/]", path):
            hint = "write it like /etc/hostname or C:/Windows/notepad.exe"
            raise InvalidValue(f'names "{path}", which is no absolute path', hint)
    return value


def _freeze_timeout(value: timedelta) -> timedelta:
    if not 1 <= value.total_seconds() <= _LONGEST_FREEZE:
        told = f"is not between 1s and {_LONGEST_FREEZE}s"
        raise InvalidValue(told, "a guest that takes longer to freeze is not available meanwhile")
    return value


def _web_url(value: str) -> str:
    parts = urlsplit(value)
    printable = value.isascii() and value.isprintable() and " " not in value
    if parts.scheme not in ("http", "https") or not parts.hostname or not printable:
        raise InvalidValue("is not a web address", "write https://HOST/PATH")
    return value


def _names(value: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in value:
        if not _NAME.fullmatch(name):
            raise InvalidValue(f'has the unusable name "{name}"', "use letters, digits, '-', '_' and '.'")
    return value


Duration = Annotated[timedelta, _from_text(parse_duration, '"26h"')]
Rate = Annotated[int, _from_text(parse_rate, '"200MiB/s"')]
Price = Annotated[tuple[float, str], _from_text(parse_price, '"0.01 EUR"')]
AbsolutePath = Annotated[Path, _from_text(_absolute, '"/an/absolute/path"')]
Schedule = Annotated[str, AfterValidator(check_schedule)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
Count = Annotated[int, Field(ge=1)]
Arguments = Annotated[Names, Field(min_length=1), AfterValidator(_program)]
Credential = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]+$")]  # a name of systemd's LoadCredential=
Url = Annotated[str, AfterValidator(_web_url)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(check_pattern)]
Memory = Annotated[int, _from_text(check_memory, '"1GiB"')]
GuestPaths = Annotated[Names, AfterValidator(_in_guest)]
GuestCommand = Annotated[Names, Field(min_length=1)]
FreezeTimeout = Annotated[Duration, AfterValidator(_freeze_timeout)]


def _any(patterns: Iterable[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class _Table(BaseModel):
    # Built at the first use, all of them at once: at each class it takes 30 ms longer, a twelfth of a short command.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)


class Libvirt(_Table):
    """[libvirt]: the hypervisor, and where a running backup keeps what the guest overwrites meanwhile."""

    uri: Annotated[str, Field(min_length=1)] = "qemu:///system"
    scratch_dir: AbsolutePath = Path("/var/lib/libvirt/vmbackup")
    nbd_tls_dir: AbsolutePath | None = None
    nbd_address: Annotated[str, Field(min_length=1)] | None = None
    nbd_ports: Annotated[tuple[int, int], _from_text(_ports, '"10810-10899"')] = (10810, 10899)
    domain_metadata: bool = False


class Prune(_Table):
    """[repositories.NAME.prune]: when the `keep` of its jobs is applied and the space freed, and what is promised."""

    schedule: Schedule
    timezone: Annotated[str, AfterValidator(_timezone)] | None = None
    max_age: Duration | None = None


class Verify(_Table):
    """[repositories.NAME.verify]: when it is checked, how much of its data is read each time, and what is promised."""

    schedule: Schedule
    timezone: Annotated[str, AfterValidator(_timezone)] | None = None
    read_data: Annotated[float, Field(gt=0, le=100, strict=False)] | None = None  # percent
    max_age: Duration | None = None


class Repository(_Table):
    """[repositories.NAME]: a store and the key to it; keys of S3 only for s3:// addresses."""

    url: Annotated[str, AfterValidator(_store_url)]
    passphrase_file: AbsolutePath | None = None
    passphrase_credential: Credential | None = None
    passphrase_command: SecretStr | None = None
    writer_key_file: AbsolutePath | None = None
    writer_key_credential: Credential | None = None
    provider: Annotated[str, Field(min_length=1)] | None = None
    endpoint_url: Annotated[str, AfterValidator(_endpoint)] | None = None
    region: Annotated[str, Field(min_length=1)] | None = None
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    access_key_file: AbsolutePath | None = None
    access_key_credential: Credential | None = None
    secret_key_file: AbsolutePath | None = None
    secret_key_credential: Credential | None = None
    ca_file: AbsolutePath | None = None
    egress_price: Price | None = None  # of a GB that is read
    max_parallel_domains: Annotated[int, Field(ge=1, le=64)] | None = None
    prune: Prune | None = None
    verify: Verify | None = None

    @property
    def has_writer_key(self) -> bool:
        """Whether it opens with a writer's key, so without a passphrase."""
        return self.writer_key_file is not None or self.writer_key_credential is not None


class Host(_Table):
    """[host]: this machine."""

    cache_dir: AbsolutePath = Path("/var/cache/vmbackup")


class Keep(_Table):
    """keep = {...}: how many restore points of each kind stay, and for how long all of them do."""

    last: Count | None = None
    hourly: Count | None = None
    daily: Count | None = None
    weekly: Count | None = None
    monthly: Count | None = None
    yearly: Count | None = None
    within: Duration | None = None


class Drill(_Table):
    """[jobs.NAME.drill]: when restore points are booted to see that they do, what must hold then, what is promised."""

    schedule: Schedule
    max_age: Duration | None = None
    boot_within: Duration = timedelta(minutes=10)
    checks_within: Duration = timedelta(minutes=5)
    memory: Memory | None = None
    console: Pattern | None = None
    services: Names = ()
    files: GuestPaths = ()
    commands: Annotated[tuple[GuestCommand, ...], Field(strict=False)] = ()


class Hooks(_Table):
    """[jobs.NAME.hooks]: commands around the moment that a guest's point in time is fixed; each has so much time."""

    before: Arguments | None = None
    after: Arguments | None = None
    guest_before: GuestCommand | None = None
    guest_after: GuestCommand | None = None
    timeout: Duration = timedelta(minutes=1)


class Job(_Table):
    """[jobs.NAME]: which guests are backed up when, where to, and what is promised about it."""

    domains: Annotated[Names, Field(min_length=1)]
    exclude: Names = ()
    schedule: Schedule | None = None
    timezone: Annotated[str, AfterValidator(_timezone)] | None = None
    repository: str | None = None
    copy_to: Names = ()
    quiesce: Literal["auto", "required", "never"] = "auto"
    freeze_mounts: GuestPaths = ()
    freeze_timeout: FreezeTimeout | None = None
    hooks: Hooks | None = None
    max_age: Duration | None = None
    keep: Keep | None = None
    bandwidth_limit: Rate | None = None
    reread_every: Duration | None = None
    verify_uploads: Literal["sample", "all"] = "sample"
    consistency_group: bool = False
    window: Duration | None = None
    deadline: Duration | None = None
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    retry_after: Duration = timedelta(minutes=5)
    copy_max_age: Duration | None = None
    ping_url: Url | None = None
    ping_failure_url: Url | None = None
    on_failure: Arguments | None = None
    drill: Drill | None = None

    def means(self, domain: str) -> bool:
        """Whether the domain of that name is one of the job's."""
        return _any(self.domains, domain) and not _any(self.exclude, domain)


class Daemon(_Table):
    """[daemon]: the service."""

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:9847"
    socket: AbsolutePath = Path("/run/vmbackup/control.sock")
    socket_group: Annotated[str, Field(min_length=1)] | None = None
    max_parallel_domains: Annotated[int, Field(ge=1, le=64)] = 2
    look_every: Duration = timedelta(minutes=5)
    textfile: AbsolutePath | None = None
    web: bool = False
    web_token_file: AbsolutePath | None = None
    state_dir: AbsolutePath = DEFAULT_STATE_DIR


class Config(_Table):
    """The whole file; every table has defaults, so that an empty one is a configuration too."""

    libvirt: Libvirt = Libvirt()
    repositories: Annotated[Mapping[str, Repository], AfterValidator(_names)] = Field(default_factory=dict)
    host: Host = Host()
    jobs: Annotated[Mapping[str, Job], AfterValidator(_names)] = Field(default_factory=dict)
    daemon: Daemon = Daemon()

    def repository_of(self, job: Job) -> str:
        """The name of the repository that the job writes to: the first of the file unless it says one."""
        return job.repository or next(iter(self.repositories))
