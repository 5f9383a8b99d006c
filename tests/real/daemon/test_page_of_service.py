"""The page of the real service: a guest of real libvirt, a real backup, seen in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.browser import MISSING, Browser, program
from tests.lab.domain import Workhorse
from tests.lab.service import make_service

pytestmark = [pytest.mark.real, pytest.mark.skipif(program() is None, reason=MISSING)]

TOKEN = "a-token-of-the-page-0123456789"


def test_a_first_backup_is_seen(make_domain: Callable[..., Workhorse], work_dir: Path) -> None:
    """Behind the token, a guest without a restore point; a backup later its promise is kept, without a reload."""
    horse = make_domain()
    token = work_dir / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    job = f'[jobs.nightly]\ndomains = ["{horse.name}"]\nschedule = "@yearly"\nmax_age = "1h"\n'
    with make_service(work_dir, job, f'web = true\nweb_token_file = "{token}"') as service, Browser() as browser:
        browser.open(f"http://127.0.0.1:{service.port}/", "document.querySelector('#token')")
        browser.click("#token")
        browser.write(TOKEN)
        browser.press("Enter")
        browser.wait("document.querySelector('#verdict .sign')")
        assert browser.texts("#verdict h1")[0].endswith("1 of 1 guest has no restore point")
        service.ask("POST", "/run", {"job": "nightly"})
        browser.wait("document.querySelector('#verdict h1').textContent.includes('is kept')")
        browser.click("#table tbody a")
        browser.wait("document.querySelector('dialog[open] [data-key=runs] tbody tr')")
        assert browser.texts("#detail-title") == [horse.name]
        assert "✓ ok" in browser.texts("dialog [data-key=runs]")[0]
        assert len(browser.texts(".day")) == 1
        assert browser.complaints == []
