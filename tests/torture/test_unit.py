"""The service under a real systemd, as `make install` puts it in place: started, watched, stopped, and shut in.

In a guest that is a hypervisor itself, with AppArmor on. Its one domain is paused; a backup of it is a real one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator

import pytest

from tests.lab.guest_image import GuestImageError
from tests.lab.service_guest import DOMAIN, ServiceGuest
from tests.lab.session import Lab

pytestmark = [pytest.mark.torture, pytest.mark.real, pytest.mark.timeout(0)]

# A hook, so a program that the service runs: what may it write to?
HOOK = """#!/bin/sh
for path in /etc /usr /root /tmp /var/lib /srv /boot /var/lib/vmbackup /var/lib/libvirt/images; do
    if touch $path/tried 2>/dev/null; then rm -f $path/tried; echo "$path"; fi
done > /var/lib/vmbackup/tried.new
mv /var/lib/vmbackup/tried.new /var/lib/vmbackup/tried
"""
JOBS = """
[jobs.slow]
domains = ["*"]
bandwidth_limit = "512KiB/s"

[jobs.failing]
domains = ["off"]
retries = 0
on_failure = ["/usr/local/bin/hook"]
"""
NO_JOB = f"virsh domjobinfo {DOMAIN} | head -1"
LEFT = "ls /var/lib/libvirt/vmbackup /var/lib/vmbackup/intents | grep -v : | grep . || true"
POINTS = "vmbackup --json list"
STATUS = "vmbackup --json status || true"  # 3 while a promise is not kept
CONFIG = "/etc/vmbackup/config.toml"


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[ServiceGuest]:
    """The hypervisor with the service running."""
    folder = lab.new_folder("service")
    try:
        with ServiceGuest(lab, folder) as guest:
            guest.agent.put("/usr/local/bin/hook", HOOK.encode())
            guest.agent.put("/root/jobs", JOBS.encode())
            guest.run(f"chmod 755 /usr/local/bin/hook; cat /root/jobs >> {CONFIG}; vmbackup init")
            guest.run("sed 's/web01/off/g' /root/domain.xml > /root/off.xml; virsh -q define /root/off.xml")
            guest.run("systemctl enable --now vmbackup")
            yield guest
    except GuestImageError as error:
        pytest.skip(f"no image of a hypervisor: {error}")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _running(host: ServiceGuest) -> None:
    host.run("systemctl reset-failed vmbackup; systemctl start vmbackup")


def _points(host: ServiceGuest) -> int:
    return len(json.loads(host.run(POINTS))["points"])


def _slow_run(host: ServiceGuest) -> None:
    """A backup that reads for a minute and a half; back once QEMU's job is there."""
    host.run("vmbackup run slow --full")
    host.until(NO_JOB, lambda said: "None" not in said)


def test_start_is_over_when_it_is_ready(host: ServiceGuest) -> None:
    """`systemctl start` comes back when the socket answers, and `status` says what it does."""
    host.run("systemctl stop vmbackup; systemctl start vmbackup")
    status = json.loads(host.run(STATUS))
    assert (status["state"], host.unit("ActiveState")) == ("running", "active")
    assert host.unit("StatusText")
    assert f'Status: "{host.unit("StatusText")}"' in host.run("systemctl status vmbackup --no-pager")


def test_doctor_has_nothing_to_say_against_it(host: ServiceGuest) -> None:
    checks = json.loads(host.run("vmbackup --json doctor || true"))["checks"]
    assert [check for check in checks if check["status"] == "fail"] == []
    found = {check["name"]: check["status"] for check in checks if check["name"].startswith("service")}
    assert found == dict.fromkeys(("service", "service-access", "service-running", "service-config"), "ok")


def test_it_backs_up_as_shipped(host: ServiceGuest) -> None:
    """Nothing that a run needs is denied, by the unit or by AppArmor."""
    profile = f"aa-status | grep -c libvirt-$(virsh domuuid {DOMAIN})"
    assert int(host.run(profile)) > 0, "QEMU is not confined: AppArmor is off"
    before = _points(host)
    host.run("vmbackup run nightly")
    host.until(POINTS, lambda said: len(json.loads(said)["points"]) == before + 1)
    point = json.loads(host.run(POINTS))["points"][0]
    assert (point["domain"], point["status"]) == (DOMAIN, "success")
    denied = host.run("journalctl -k --no-pager | grep -E 'apparmor=\"DENIED\"|type=1326' || true")
    assert denied == ""
    assert host.until(LEFT, lambda said: said == "") == ""


def test_a_reload_takes_the_new_configuration_and_refuses_a_wrong_one(host: ServiceGuest) -> None:
    pid = host.unit("MainPID")
    host.run(f"""sed -i 's/^schedule = "0 2 .*/schedule = "0 4 * * *"/' {CONFIG}; systemctl reload vmbackup""")
    host.until(STATUS, lambda said: "T04:" in said)
    host.run(f"cp {CONFIG} /root/good; echo 'nonsense = 1' >> {CONFIG}; systemctl reload vmbackup")
    host.until(STATUS, lambda said: json.loads(said)["config_ok"] is False)
    assert "nonsense" in host.log()
    host.run(f"cp /root/good {CONFIG}; systemctl reload vmbackup")
    host.until(STATUS, lambda said: json.loads(said)["config_ok"] is True)
    assert (host.unit("MainPID"), host.unit("ActiveState")) == (pid, "active")


def test_it_is_shut_in(host: ServiceGuest) -> None:
    """A program that it runs writes to its own folders and libvirt's, and has one power of root."""
    host.run("rm -f /var/lib/vmbackup/tried; vmbackup run failing")
    tried = host.until("cat /var/lib/vmbackup/tried 2>/dev/null || true", lambda said: said != "")
    assert tried.split() == ["/var/lib/vmbackup", "/var/lib/libvirt/images"]
    status = host.run(f"cat /proc/{host.unit('MainPID')}/status")
    told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {told["CapEff"], told["CapBnd"]} == {"0000000000000002"}  # CAP_DAC_OVERRIDE
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    inside = f"nsenter -t {host.unit('MainPID')} -m touch /etc/tried /usr/tried 2>&1 || true"
    assert host.run(inside).count("Read-only file system") == 2
    exposure = host.run("systemd-analyze security vmbackup --no-pager | tail -1")
    assert float(exposure.split("vmbackup.service: ")[1].split()[0]) <= 2.5


def test_killed_in_the_middle_of_a_backup(host: ServiceGuest) -> None:
    """kill -9: the run ends its job, nothing is left, and the service is back by itself."""
    before, points = int(host.unit("NRestarts")), _points(host)
    _slow_run(host)
    host.run("kill -9 $(systemctl show vmbackup --value -p MainPID)")
    host.until(NO_JOB, lambda said: "None" in said, 90)
    host.until("systemctl show vmbackup --value -p NRestarts", lambda said: int(said) == before + 1)
    host.until("systemctl is-active vmbackup || true", lambda said: said == "active\n")
    assert host.run(LEFT) == ""
    assert _points(host) == points


def test_all_of_it_killed_in_the_middle_of_a_backup(host: ServiceGuest) -> None:
    """No process of it is left to clean up: `vmbackup recover` does it, before the service starts again."""
    _slow_run(host)
    host.run("systemctl kill -s KILL vmbackup")
    host.until("systemctl is-active vmbackup || true", lambda said: said == "active\n")
    assert "None" in host.run(NO_JOB)
    assert host.run(LEFT) == ""


def test_a_hung_service_is_ended_and_started_again(host: ServiceGuest) -> None:
    host.run("mkdir -p /run/systemd/system/vmbackup.service.d")
    host.run("printf '[Service]\\nWatchdogSec=30\\n' > /run/systemd/system/vmbackup.service.d/test.conf")
    host.run("systemctl daemon-reload; systemctl restart vmbackup")
    pid, before = host.unit("MainPID"), int(host.unit("NRestarts"))
    time.sleep(45)
    assert host.unit("MainPID") == pid, "it was ended though it was alive"
    host.run(f"kill -STOP {pid}")
    host.until("systemctl show vmbackup --value -p NRestarts", lambda said: int(said) == before + 1)
    assert "Watchdog timeout" in host.log()
    host.until("systemctl is-active vmbackup || true", lambda said: said == "active\n")
    host.run("rm -r /run/systemd/system/vmbackup.service.d; systemctl daemon-reload; systemctl restart vmbackup")


def test_it_stops_within_a_minute_and_leaves_nothing(host: ServiceGuest) -> None:
    points = _points(host)
    _slow_run(host)
    took = host.run("start=$(date +%s); systemctl stop vmbackup; echo $(($(date +%s) - start))")
    assert int(took) <= 60
    assert (host.unit("Result"), host.unit("ActiveState")) == ("success", "inactive")
    assert "None" in host.run(NO_JOB)
    assert host.run(LEFT) == ""
    assert _points(host) == points


def test_a_passphrase_as_a_credential(host: ServiceGuest) -> None:
    """`doctor` says what the unit lacks and how to give it; then the service reads the passphrase from systemd."""
    host.run(f"cp {CONFIG} /root/good")
    host.run(f"""sed -i 's|^passphrase_file = .*|passphrase_credential = "pass"|' {CONFIG}
        mkdir -p -m 700 /etc/vmbackup/credentials; cp /etc/vmbackup/passphrase /etc/vmbackup/credentials/pass""")
    command = "CREDENTIALS_DIRECTORY=/etc/vmbackup/credentials vmbackup --json"
    checks = json.loads(host.run(f"{command} doctor || true"))["checks"]
    lacking = [check for check in checks if check["name"] == "service-access"]
    assert [check["status"] for check in lacking] == ["fail"]
    host.run(lacking[0]["fix"])
    before = len(json.loads(host.run(f"{command} list"))["points"])
    host.run("vmbackup run nightly")
    host.until(f"{command} list", lambda said: len(json.loads(said)["points"]) == before + 1)
    host.run(f"cp /root/good {CONFIG}; rm -r /etc/systemd/system/vmbackup.service.d; systemctl daemon-reload")


def test_installed_disk_is_whole(host: ServiceGuest) -> None:
    """What `make install DESTDIR=` staged has no path of the stage in it."""
    assert host.run("grep -rlI /stage /usr/lib/vmbackup/bin /usr/lib/vmbackup/pyvenv.cfg || true") == ""
