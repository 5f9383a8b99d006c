"""The page as a viewer has it: a real browser, a real server, a service that shows what it was given."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.lab.browser import MISSING, Browser, program
from tests.unit.daemon.states import DAY, ERROR, HINT, HOUR, NOW, guest, last, many, running, snapshot, store, three
from vmbackup.daemon.snapshot import DrillState, Snapshot
from vmbackup.daemon.web import WebServer
from vmbackup.daemon.work import Progress, moment

pytestmark = [pytest.mark.real, pytest.mark.skipif(program() is None, reason=MISSING)]

SHOWN = "document.querySelector('#verdict .sign')"
OPEN = "document.querySelector('dialog[open] .sheet')"
NAMES = "#table tbody th"
HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    '"><b>bold</b>',
    "${1+1} {{1+1}} %s",
    "a/b?c#d&e=f",
    "\u202ednatrever\u202c",
    "half \ud800 of a pair",
    "line\nbreak",
    "x" * 300,
)


def png(width: int, height: int) -> bytes:
    """A grey picture."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + bytes([90]) * width) * height
    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


@dataclass
class Shown:
    """What the service says, to be changed under the page."""

    snapshot: Snapshot
    history: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)


Serve = Callable[..., WebServer]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A browser that must have nothing to complain of, and asks nobody but the service."""
    chromium.look(1440, 900)
    chromium.open("about:blank")
    chromium.requests.clear()
    chromium.complaints.clear()
    yield chromium
    assert chromium.complaints == []
    elsewhere = [url for url in chromium.requests if not url.startswith(("http://127.0.0.1:", "about:"))]
    assert elsewhere == []


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def start(shown: Shown | Snapshot, token: str | None = None, at: int = 0) -> WebServer:
            says = Shown(shown) if isinstance(shown, Snapshot) else shown
            server = WebServer(
                f"127.0.0.1:{at}",
                lambda: b"",
                lambda: says.snapshot,
                lambda: None,
                True,
                token,
                says.pictures.get,
                recent=lambda limit, domain: [run for run in says.history if run["domain"] == domain][:limit],
            )
            server.start()
            stack.callback(server.shutdown)
            return server

        yield start


def visit(browser: Browser, server: WebServer, place: str = "/", until: str = SHOWN) -> None:
    browser.open(f"http://127.0.0.1:{server.port}{place}", until)


def run_of(domain: str, status: str = "success", ago: float = HOUR, **more: Any) -> dict[str, Any]:
    """A run as history tells it."""
    places = {"repository": "local", "job": "nightly", "domain": domain, "target": None}
    times = {"started": moment(NOW - ago), "due": moment(NOW - ago), "finished": moment(NOW - ago + 95)}
    bad = {"error": ERROR, "hint": HINT} if status == "failed" else {"error": None, "hint": None}
    run = {"id": f"{int(ago):08x}", "kind": "backup", "trigger": "schedule", "attempt": 1, "status": status}
    return {**run, **places, **times, **bad, "points": [{"stored_bytes": 5 << 20}], **more}


def test_nothing_yet(browser: Browser, serve: Serve) -> None:
    """A page without guests says what to do."""
    visit(browser, serve(snapshot(repositories=())))
    [title] = browser.texts("#verdict h1")
    assert "No guest is backed up" in title
    assert "[jobs.nightly]" in browser.texts("#verdict pre")[0]
    assert browser.evaluate("document.getElementById('guests').hidden")


def test_three_guests(browser: Browser, serve: Serve) -> None:
    """The worst is the first thing to be read; state has a word; progress, queue and repositories are there."""
    visit(browser, serve(three()))
    assert "1 of 3 guests breaks its promise" in browser.texts("#verdict h1")[0]
    assert "Repository offsite is down: s3.example.org does not answer" in "\n".join(browser.texts(".problems li"))
    assert [name.strip() for name in browser.texts(NAMES)] == ["web01", "db01", "app01"]
    states = browser.texts("#table td[data-title=State]")
    assert re.search(r"Broken\s+31\.[23] of 26 h", states[0])  # rounded up, and time goes on
    assert "Kept" in states[1]
    assert browser.texts("#table td[data-title='Next run']")[1:] == ["queued", "running 43 %"]
    assert "43.0 GiB of 100 GiB · 118 MiB/s · 8 min left" in browser.texts("#runs-body")[0]
    assert browser.evaluate("document.querySelector('progress').value") == pytest.approx(0.43)
    assert "backup db01 waits for its turn" in browser.texts("#runs-body")[0]
    assert [text.split()[-1] for text in browser.texts("#repositories-body td[data-title=State]")] == ["up", "down"]
    assert browser.evaluate("document.title") == "(1) hv1 - vmbackup"


def test_a_broken_promise_fills_its_bar(browser: Browser, serve: Serve) -> None:
    visit(browser, serve(snapshot(guest("late", 40 * HOUR), guest("half", 13 * HOUR))))
    parts = "[...document.querySelectorAll('#table .part')].map((part) => part.getAttribute('width'))"
    assert browser.evaluate(parts) == ["100.0", "50.0"]


def test_three_hundred_guests(browser: Browser, serve: Serve) -> None:
    """All are there, those in trouble first, and a refresh of them takes no time that a viewer would notice."""
    visit(browser, serve(many(300)))
    names = [name.strip() for name in browser.texts(NAMES)]
    assert len(names) == 300
    assert set(names[:6]) == {f"guest{number:03}" for number in range(7, 300, 50)}
    assert browser.texts("#count") == ["300 guests"]


def test_filters(browser: Browser, serve: Serve) -> None:
    """By text, by state, by both; what is shown is counted."""
    visit(browser, serve(many(300)))
    browser.click("#filter")
    browser.write("GUEST00")
    assert len(browser.texts(NAMES)) == 10
    assert browser.texts("#count") == ["10 of 300 guests shown"]
    browser.write(" 07")
    assert [name.strip() for name in browser.texts(NAMES)] == ["guest007"]
    browser.click("[data-key=broken]")
    assert [name.strip() for name in browser.texts(NAMES)] == ["guest007"]
    assert browser.evaluate("document.querySelector('[data-key=broken]').ariaPressed") == "true"


def test_sorting(browser: Browser, serve: Serve) -> None:
    """By a click on a title, twice for the other way round; numbers in names count as numbers."""
    visit(browser, serve(snapshot(*(guest(f"vm{number}", number * HOUR) for number in (10, 2, 30, 1)))))
    assert [name.strip() for name in browser.texts(NAMES)] == ["vm30", "vm10", "vm2", "vm1"]
    browser.click("[data-column='0']")
    assert [name.strip() for name in browser.texts(NAMES)] == ["vm1", "vm2", "vm10", "vm30"]
    assert browser.evaluate("document.querySelector('th[aria-sort]').ariaSort") == "ascending"
    browser.click("[data-column='0']")
    assert [name.strip() for name in browser.texts(NAMES)] == ["vm30", "vm10", "vm2", "vm1"]


CHECKS = ("service ssh", "file /srv/shop")


def test_a_guests_detail(browser: Browser, serve: Serve) -> None:
    """Calendar, last runs, copies, the drill with its picture; Escape leads back to where the viewer was."""
    drill = DrillState(NOW - 3 * DAY, 15 * DAY, NOW + DAY, last(ago=3 * DAY), "web01.png", 21.5, CHECKS)
    times = (NOW - HOUR, NOW - 2 * HOUR, NOW - DAY, NOW - 40 * DAY)
    failed = last("failed", HOUR, ERROR)
    web01 = guest("web01", HOUR, point_times=times, drill=drill, last_run=failed, freeze_seconds=0.2, quiesce_ok=True)
    history = [run_of("web01", "failed"), run_of("web01", ago=DAY), run_of("web01", ago=2 * DAY, job="other")]
    visit(browser, serve(Shown(snapshot(web01), history, {"web01.png": png(320, 200)})))
    browser.evaluate("document.querySelector('#table tbody a').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('dialog[open] [data-key=runs]')")
    said = browser.texts("dialog")[0]
    assert "file systems frozen for 0.20 s" in said
    assert (ERROR in said, HINT in said) == (True, True)
    assert "booted in 22 s, 2 checks held (service ssh; file /srv/shop); next" in said
    assert len(browser.texts("dialog [data-key=runs] tbody tr")) == 2
    assert [caption.split(" ")[0] for caption in browser.texts(".month caption")] == ["November", "October"]
    days = browser.evaluate("[...document.querySelectorAll('.day')].map((day) => day.ariaLabel)")
    assert days[1] == "Sat 28 November 2026: 2 restore points, 16:00, 17:00"
    assert browser.evaluate("document.querySelector('.picture').decode().then(() => true)")
    assert browser.evaluate("document.querySelector('.picture').naturalWidth") == 320
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog').open")
    assert browser.evaluate("document.activeElement.textContent") == "web01"


def test_the_times_of_a_day_are_shown_where_the_focus_is(browser: Browser, serve: Serve) -> None:
    visit(browser, serve(snapshot(guest())), "/#/guest/web01/nightly", OPEN)
    browser.evaluate("document.querySelector('.day').focus()")
    assert browser.evaluate("getComputedStyle(document.querySelector('.day .tip')).display") == "block"


def test_what_could_not_be_done_yet_is_no_trouble(browser: Browser, serve: Serve) -> None:
    """A drill or a verify whose first promised time is to come is "not yet"; afterwards it is late."""
    new = guest("new", HOUR, drill=DrillState(0.0, 7 * DAY, NOW + DAY), known_since=NOW - DAY)
    late = replace(new, domain="late", known_since=NOW - 8 * DAY)
    local = store(last_verified=0.0, verify_max_age=7 * DAY, known_since=NOW - DAY)
    visit(browser, serve(Shown(snapshot(new, late, repositories=(local,)))), "/#/guest/new/nightly", OPEN)
    assert "Not yet" in browser.evaluate("document.querySelector('[data-key=drill]').innerText")
    problems = browser.evaluate("document.querySelector('#verdict').textContent")
    assert "Drills are late or failed: \u2068late\u2069" in problems
    assert "\u2068new\u2069" not in problems
    assert "not yet" in browser.evaluate("document.querySelector('#repositories').innerText")


def test_an_address_of_a_guest_that_is_gone(browser: Browser, serve: Serve) -> None:
    visit(browser, serve(snapshot(guest())), "/#/guest/no-such/nightly", OPEN)
    assert "does not know this guest" in browser.texts("dialog")[0]


def test_times_are_the_viewers(browser: Browser, serve: Serve) -> None:
    """In his zone; where the pointer rests, with the offset."""
    visit(browser, serve(snapshot(guest("web01", 15 * HOUR))))
    [title] = browser.evaluate("[...document.querySelectorAll(\"[data-title='Last good'] time\")].map((t) => t.title)")
    assert title == "Sat 2026-11-28 03:00:00 +01:00"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(browser: Browser, serve: Serve, name: str) -> None:
    """Whatever a guest, a job, a repository or an error is called: it is shown, and does nothing."""
    trouble = last("failed", HOUR, name)
    drill = DrillState(0.0, DAY, NOW, trouble, name)
    state = guest(name, HOUR, job=name, repository=name, last_run=trouble, drill=drill)
    repository = store(name, up=False, error=name)
    run = replace(running(name, target=name, repository=name), progress=Progress(name, 1, 2, 1.0, name))
    document = snapshot(state, runs=(run,), repositories=(repository,), unprotected=(name,), host=name)
    history = [run_of(name, "failed", error=name, target=name)]
    visit(browser, serve(Shown(document, history, {name: png(2, 2)})))
    browser.click("#table tbody a")
    browser.wait(OPEN)
    assert browser.evaluate("document.querySelectorAll('script').length") == 1
    assert browser.evaluate("document.querySelectorAll('b:not(.chip b), [onerror]').length") == 0
    shown = json.dumps(name.replace("\ud800", "\ud800"))
    assert browser.evaluate(f"document.querySelector('#table tbody a').textContent === {shown}")
    assert browser.evaluate(f"document.querySelector('#detail-title').textContent === {shown}")
    assert "owned" not in browser.evaluate("document.title").partition(" - ")[2]
    browser.look(390, 844)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.complaints[:] = [told for told in browser.complaints if "/pictures/" not in told]  # not every name is one


def test_it_refreshes_itself_and_disturbs_nobody(browser: Browser, serve: Serve) -> None:
    """New figures appear by themselves; focus, filter, selection and places in the page stay, nodes too."""
    shown = Shown(many(60))
    visit(browser, serve(shown))
    browser.click("#filter")
    browser.write("guest")
    browser.evaluate("window.kept = document.querySelectorAll('#table tbody tr')[30]; scrollTo(0, 500); 1")
    states = [replace(state, last_success=NOW - HOUR) for state in shown.snapshot.guests]
    shown.snapshot = replace(shown.snapshot, guests=tuple(states), now=NOW + 10, runs=())
    browser.wait("document.querySelector('#verdict h1').textContent.includes('All 60 guests')")
    assert browser.evaluate("document.activeElement.id") == "filter"
    assert browser.evaluate("document.getElementById('filter').value") == "guest"
    assert browser.evaluate("kept.isConnected")
    assert browser.evaluate("scrollY") > 0
    assert browser.evaluate("document.getElementById('runs').hidden")


def test_the_focus_moves_with_its_guest(browser: Browser, serve: Serve) -> None:
    """A guest that rises to the top as its promise breaks is still the one that Enter opens."""
    shown = Shown(snapshot(*(guest(f"vm{number}", 10 * HOUR) for number in range(9))))
    visit(browser, serve(shown))
    browser.evaluate("document.querySelectorAll('#table tbody a')[5].focus()")
    times = {"vm5": NOW - 30 * HOUR}
    states = [replace(state, last_success=times.get(state.domain, NOW)) for state in shown.snapshot.guests]
    shown.snapshot = replace(shown.snapshot, guests=tuple(states))
    browser.wait("document.querySelector('#table tbody a').textContent === 'vm5'")
    assert browser.evaluate("document.activeElement.textContent") == "vm5"


def test_progress_moves(browser: Browser, serve: Serve) -> None:
    """In the list of runs and in the table."""
    shown = Shown(three())
    visit(browser, serve(shown))
    shown.snapshot = replace(shown.snapshot, runs=(running(progress=Progress("app01", 9, 10)),))
    browser.wait("document.querySelector('#table').textContent.includes('running 90 %')")
    assert browser.evaluate("document.querySelector('progress').value") == pytest.approx(0.9)


def test_an_open_detail_is_kept_up_to_date(browser: Browser, serve: Serve) -> None:
    shown = Shown(snapshot(guest("web01", 30 * HOUR)))
    visit(browser, serve(shown), "/#/guest/web01/nightly", OPEN)
    browser.evaluate("document.querySelector('[data-close]').focus()")
    shown.snapshot = snapshot(guest("web01", HOUR))
    shown.history.append(run_of("web01"))
    browser.wait("document.querySelector('dialog .pill').textContent.includes('Kept')")
    browser.wait("document.querySelector('dialog [data-key=runs] tbody tr')")
    assert browser.evaluate("document.activeElement.ariaLabel") == "Close"


def test_it_says_when_the_service_is_silent_and_when_it_is_back(browser: Browser, serve: Serve) -> None:
    server = serve(three())
    visit(browser, server)
    server_port = server.port
    server.shutdown()
    browser.wait("!document.getElementById('silence').hidden")
    [told] = browser.texts("#silence")
    assert re.match(r"The service has not answered since \d\d:\d\d:\d\d \(", told)
    assert len(browser.texts(NAMES)) == 3
    serve(three(), at=server_port)
    browser.wait("document.getElementById('silence').hidden")
    browser.complaints[:] = [told for told in browser.complaints if "ERR_CONNECTION_REFUSED" not in told]


def test_the_token_is_asked_for(browser: Browser, serve: Serve) -> None:
    """A wrong one leads back to the form; with the right one the page is there, and stays after a reload."""
    token = "correct-horse-battery"
    server = serve(three(), token)
    visit(browser, server, until="document.querySelector('#token')")
    again = "location.hash === '#wrong' && document.readyState === 'complete'"
    for shown, until in (("wrong", again), (token, SHOWN)):
        browser.click("#token")
        browser.write(shown)
        browser.press("Enter")
        browser.wait(until)
    assert browser.evaluate("document.cookie") == ""
    visit(browser, server)
    assert all(token not in url for url in browser.requests)


def test_the_keyboard_is_enough(browser: Browser, serve: Serve) -> None:
    """Tab reaches the way past the top, states, filter, titles and guests; each has a name."""
    visit(browser, serve(three()))
    reached = []
    for _ in range(25):
        browser.press("Tab")
        reached.append(browser.evaluate("document.activeElement.textContent.trim() || document.activeElement.id"))
    assert reached[0] == "To the guests"
    assert {"filter", "web01", "db01", "app01", "Verified"} <= set(reached)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 980, 1200, 1330])
def test_contrast_and_width(browser: Browser, serve: Serve, width: int, dark: bool) -> None:
    """WCAG AA: every text against its ground has 4.5; nothing is wider than the window."""
    browser.look(width, 900, dark=dark)
    never = guest("new", 0, drill=DrillState(0.0, DAY, NOW))
    close = guest("close", 25.5 * HOUR, job="other")
    document = replace(three(), guests=(*three().guests, never, close, guest("free", HOUR, None)))
    visit(browser, serve(Shown(document, [run_of("web01", "failed")])), "/#/guest/web01/nightly", OPEN)
    browser.wait("document.querySelector('[data-key=runs]')")
    assert browser.evaluate(_FAINT) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelector('dialog').scrollWidth") <= width
    wide = "[...document.querySelectorAll('.card table')].map((one) => one.scrollWidth - one.parentElement.clientWidth)"
    assert max(browser.evaluate(wide)) <= 0


# Text whose contrast with the nearest ground behind it is below 4.5 (WCAG 2.2, 1.4.3, with its relative luminance).
_FAINT = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = parts(colour).map((c) => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest('noscript')) continue;
    const [one, other] = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
    const contrast = (one + .05) / (other + .05);
    if (contrast < 4.5) faint.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return faint;
})()"""
