"""Enrolling writers and revoking them: a reader's work (docs/repository-format.md, section 4)."""

import contextlib
import re

from vmbackup.errors import NotFoundError, UsageError
from vmbackup.repository import making
from vmbackup.repository.keyring import Keyring
from vmbackup.repository.layout import check_group
from vmbackup.repository.writers import ROLES, WriterKey, WriterKeys
from vmbackup.storage_backends import ObjectExists

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def new_writer(repository: Keyring, name: str, group: str, role: str) -> WriterKeys:
    """Keys for a host, which count for nothing until they are enrolled; its group is made where there is none.

    Raises AccessError for one who is no reader, UsageError for a name that is taken or none.
    """
    reader = repository.reader
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot name a writer", "use a host's name: letters, digits, '-', '_' and '.'")
    if role not in ROLES:
        raise UsageError(f"there is no role '{role}'", f"use {' or '.join(ROLES)}")
    check_group(group)
    if any(name == writer.name for writer in repository.writers().values()):
        raise UsageError(f"there is a writer '{name}' already", "'vmbackup key list' shows them; take another name")
    try:
        keys = repository.group(group)
    except NotFoundError:
        for key, document in making.new_group(reader, group, repository.config.epoch).items():
            with contextlib.suppress(ObjectExists):  # somebody else makes it just now: what was first holds for both
                repository.store.put(key, document)
        keys = repository.group(group)
    return WriterKeys(reader.realm, reader.verify_key, keys, WriterKey.generate(name, role, group))


def enrol(repository: Keyring, writer: WriterKeys) -> None:
    """From now on what it signs counts."""
    repository.store.put(*making.enrolment(repository.reader, writer.writer))
    repository.forget_writers()
