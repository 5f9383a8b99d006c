"""Passphrases come from files, credentials, commands or people, and broken sources are told."""

from pathlib import Path

import pytest

from vmbackup.config.models import Repository
from vmbackup.config.secrets import make_passphrase_file, read_passphrase, write_secret_file, writer_key_path
from vmbackup.config.stores import s3_settings
from vmbackup.errors import AccessError, ConfigError


def _repository(**keys: str) -> Repository:
    return Repository.model_validate({"url": "/x", **keys})


def _file(path: Path, content: bytes) -> Repository:
    path.write_bytes(content)
    return _repository(passphrase_file=str(path))


def test_from_a_file(tmp_path: Path) -> None:
    assert read_passphrase("a", _file(tmp_path / "p", b"se cret \n")) == "se cret "


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\n", "is empty"), (b"a\nb\n", "more than one line"), (b"\xff", "not UTF-8"),
     (b"x" * 70000, "too large")],
)  # fmt: skip
def test_a_broken_file(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_passphrase("a", _file(tmp_path / "p", content))


def test_a_missing_file_is_a_question_of_access(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="none does not exist"):
        read_passphrase("a", _repository(passphrase_file=str(tmp_path / "none")))


def test_from_a_credential(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("secret\n")
    repository = _repository(passphrase_credential="pass")
    assert read_passphrase("a", repository, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "secret"
    with pytest.raises(AccessError, match='no credentials, so not "pass"') as caught:
        read_passphrase("a", repository, environ={})
    assert caught.value.hint.startswith("add LoadCredential=pass:FILE to the unit")


def test_keys_of_a_bucket_from_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may be a file or a credential."""
    for name, text in (("id", "AKID\n"), ("secret", "hunter2\n"), ("file", "other\n")):
        (tmp_path / name).write_text(text)
    settings = {"url": "s3://bucket/prefix", "provider": "hetzner:fsn1", "access_key_credential": "id"}
    both = Repository.model_validate({**settings, "secret_key_credential": "secret"})
    with pytest.raises(AccessError, match='no credentials, so not "id"'):
        s3_settings(both)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    found = s3_settings(both)
    assert found
    assert (found.access_key, found.secret_key) == ("AKID", "hunter2")
    found = s3_settings(Repository.model_validate({**settings, "secret_key_file": str(tmp_path / "file")}))
    assert found
    assert (found.access_key, found.secret_key) == ("AKID", "other")


def test_a_writers_key_from_a_credential(tmp_path: Path) -> None:
    repository = _repository(writer_key_credential="writer")
    assert repository.has_writer_key
    assert writer_key_path(repository, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == tmp_path / "writer"
    with pytest.raises(AccessError, match='no credentials, so not "writer"'):
        writer_key_path(repository, {})
    assert writer_key_path(_repository(writer_key_file="/k"), {}) == Path("/k")
    assert writer_key_path(_repository(passphrase_file="/p"), {}) is None


def test_from_a_command() -> None:
    assert read_passphrase("a", _repository(passphrase_command="echo 'se  cret'")) == "se  cret"
    broken = {"false": "ended with 1", "no-such-program": "cannot be run", "true": "is empty", "'": "cannot be run"}
    for command, message in broken.items():
        with pytest.raises(ConfigError, match=message):
            read_passphrase("a", _repository(passphrase_command=command))


def test_from_a_person() -> None:
    assert read_passphrase("a", _repository(), ask=lambda text: f"<{text}>") == "<Passphrase of repository a>"
    with pytest.raises(AccessError, match='no passphrase for repository "a"'):
        read_passphrase("a", _repository())


def test_a_new_file_is_private_random_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "passphrase"
    passphrase = make_passphrase_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_passphrase("a", _repository(passphrase_file=str(path))) == passphrase
    assert make_passphrase_file(tmp_path / "other") != passphrase
    with pytest.raises(ConfigError, match="exists already"):
        write_secret_file(path, "x")
    assert path.read_text() == passphrase + "\n"


def test_comments_stand_beside_a_passphrase_but_a_lone_line_is_one(tmp_path: Path) -> None:
    """The file of a recovery key can be named as passphrase file as it is."""
    assert read_passphrase("a", _file(tmp_path / "p", b"# the key of\n# offsite\nAAAA-BBBB\n")) == "AAAA-BBBB"
    assert read_passphrase("a", _file(tmp_path / "q", b"#hash\n")) == "#hash"
