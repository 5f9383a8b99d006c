"""Debian's Prometheus and Alertmanager with what monitoring/ ships, sped up; and a pager that notes whom they call."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from .service import free_port

SHIPPED = Path(__file__).parents[2] / "monitoring"
START_TIMEOUT = 60.0  # seconds; they take 1
NEEDS = ("prometheus", "prometheus-alertmanager")


class MonitoringError(Exception):
    """What was waited for did not come, with what was seen last."""


def missing() -> str | None:
    """What lacks to run them, None where nothing does."""
    lacking = [name for name in NEEDS if not shutil.which(name)]
    return f"{' and '.join(lacking)} missing: apt-get install {' '.join(NEEDS)}" if lacking else None


class Pager:
    """Takes Alertmanager's web requests; `calls` are (alert, domain, status) in the order in which they came."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.texts: list[dict[str, str]] = []
        calls, texts = self.calls, self.texts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in document["alerts"]:
                    labels = alert["labels"]
                    calls.append((labels["alertname"], labels.get("domain", ""), alert["status"]))
                    texts.append(alert["annotations"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Nobody is called from here on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Monitoring:
    """Both of them, asking the service at `port` every second. A context manager."""

    def __init__(self, folder: Path, port: int, hold: str = "2s") -> None:
        self._folder = folder
        self._ports = {"prometheus": free_port(), "alertmanager": free_port()}
        self._port, self._hold = port, hold
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.pager = Pager()
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.pager.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of a query, now."""
        found = self._ask("prometheus", f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def alerts(self) -> set[tuple[str, str]]:
        """Alert and domain ("" without one) of what Alertmanager has, silenced and inhibited ones too."""
        listed = [alert["labels"] for alert in self._ask("alertmanager", "/api/v2/alerts")]
        return {(labels["alertname"], labels.get("domain", "")) for labels in listed}

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float) -> Any:
        """Until the condition gives something true, which is returned. MonitoringError."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                told = f"alerts: {sorted(self.alerts())}; calls: {self.pager.calls}"
                raise MonitoringError(f"waited {seconds:.0f} s for {what}; {told}")
            time.sleep(0.2)
        return found

    def _configure(self) -> None:
        """The shipped files, with seconds for minutes, and with addresses of this machine."""
        rules = (SHIPPED / "vmbackup.rules.yml").read_text()
        (self._folder / "vmbackup.rules.yml").write_text(re.sub(r"for: \w+", f"for: {self._hold}", rules))
        text = (SHIPPED / "prometheus.yml").read_text()
        text = re.sub(r"(scrape|evaluation)_interval: \w+", r"\1_interval: 1s", text)
        text = text.replace("127.0.0.1:9093", f"127.0.0.1:{self._ports['alertmanager']}")
        text = re.sub(r'"hv1.*?", "hv2.*?"', f'"127.0.0.1:{self._port}"', text)
        (self._folder / "prometheus.yml").write_text(text)
        text = (SHIPPED / "alertmanager.yml").read_text()
        text = text.replace("group_wait: 1m", "group_wait: 1s").replace("group_interval: 10m", "group_interval: 1s")
        text = re.sub(
            r"email_configs:.*?(?=send_resolved)",
            "webhook_configs:\n      - url: PAGER\n        ",
            text,
            flags=re.DOTALL,
        )
        text = re.sub(r"url: (PAGER|http.*)", f"url: http://127.0.0.1:{self.pager.port}/", text)
        (self._folder / "alertmanager.yml").write_text(text)

    def _start(self) -> None:
        commands = {
            "alertmanager": [
                "prometheus-alertmanager", "--config.file=alertmanager.yml", "--cluster.listen-address=",
                "--storage.path=alertmanager",
            ],
            "prometheus": ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=prometheus"],
        }  # fmt: skip
        for name, command in commands.items():
            address = f"--web.listen-address=127.0.0.1:{self._ports[name]}"
            with (self._folder / f"{name}.log").open("wb") as log:
                program = ["setpriv", "--pdeathsig", "KILL", *command, address]
                self._processes.append(
                    subprocess.Popen(program, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
        deadline = time.monotonic() + START_TIMEOUT
        for name in commands:
            while not self._ready(name):
                if time.monotonic() > deadline:
                    raise MonitoringError(
                        f"{name} does not start: {(self._folder / f'{name}.log').read_text()[-2000:]}"
                    )
                time.sleep(0.1)

    def _ready(self, name: str) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(self._url(name, "/-/ready"), timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def _ask(self, name: str, path: str) -> Any:
        try:
            with urllib.request.urlopen(self._url(name, path), timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise MonitoringError(f"{name}: {error.read().decode()}") from None

    def _url(self, name: str, path: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}{path}"
