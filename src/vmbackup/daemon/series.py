"""The names of all metrics, their labels and what they mean: a contract with alerts and dashboards."""

from dataclasses import dataclass
from typing import Literal

GUEST = ("domain", "job_name", "repository")
REPOSITORY = ("repository",)


@dataclass(frozen=True)
class Series:
    """A metric. The name of a counter ends in `_total`."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()


def _gauge(name: str, text: str, *labels: str) -> Series:
    return Series(f"vmbackup_{name}", "gauge", text, labels)


def _counter(name: str, text: str, *labels: str) -> Series:
    return Series(f"vmbackup_{name}_total", "counter", text, labels)


# The service and the host.
BUILD_INFO = _gauge("build_info", "Always 1; the label is the version of the service.", "version")
START = _gauge("start_timestamp_seconds", "When the service began.")
CONFIG_RELOADED = _gauge("config_last_reload_successful", "1 = the last reload of the configuration was good.")
LIBVIRT_UP = _gauge("libvirt_up", "1 = libvirt answered when it was last asked.")
SCRATCH_BYTES = _gauge("scratch_bytes", "Bytes of scratch files on disk.")
RUNS_ACTIVE = _gauge("runs_active", "Runs that go on, or that wait for their turn.", "kind", "state")

# Domains, whatever their job.
PROTECTED = _gauge("domain_protected", "1 = a job with a schedule backs the domain up, of all libvirt knows.", "domain")

# A domain under a job.
PRESENT = _gauge("domain_present", "1 = libvirt knows the domain now.", *GUEST)
KNOWN_SINCE = _gauge("known_since_timestamp_seconds", "When this host first saw the domain under the job.", *GUEST)
LAST_SUCCESS = _gauge(
    "last_success_timestamp_seconds", "The point in time of the newest good restore point; 0 = never.", *GUEST
)
MAX_AGE = _gauge("max_age_seconds", "The age that the newest restore point may have; 0 = nothing is promised.", *GUEST)
LAST_RUN = _gauge("last_run_timestamp_seconds", "When the last run ended; 0 = never.", *GUEST)
LAST_STATUS = _gauge(
    "last_run_status", "1 = this is how the last run ended, or that one goes on; all 0 = never run.", *GUEST, "status"
)
LAST_FAILED = _gauge("last_run_failed", "1 = the last run that has ended failed, even while the next goes on.", *GUEST)
LAST_DURATION = _gauge("last_run_duration_seconds", "What the last run took, as far as known.", *GUEST, "stage")
NEXT_RUN = _gauge("next_run_timestamp_seconds", "When the next run is to start; 0 = none is scheduled.", *GUEST)
RUNS = _counter("runs", "Backups that have ended.", *GUEST, "status")
SKIPPED = _counter("runs_skipped", "Backups that came due and were not begun.", *GUEST, "reason")
READ_BYTES = _counter("read_bytes", "Bytes read from disks by backups.", *GUEST)
CHANGED_BYTES = _counter("changed_bytes", "Bytes that backups found changed.", *GUEST)
STORED_BYTES = _counter("stored_bytes", "Bytes that backups added to the repository.", *GUEST)
FULL_READ = _counter("full_read", "Disks that backups read whole.", *GUEST, "reason")
FREEZE = _gauge("guest_freeze_seconds", "How long the guest was frozen for the newest restore point.", *GUEST)
QUIESCE_OK = _gauge("quiesce_ok", "1 = the newest restore point is consistent beyond a crash.", *GUEST)
VERIFIED = _gauge(
    "last_verified_timestamp_seconds", "When the restore points of the domain were last verified; 0 = never.", *GUEST
)
DRILLED = _gauge("last_drill_success_timestamp_seconds", "When a drill last succeeded; 0 = never.", *GUEST)
DRILL_FAILED = _gauge("last_drill_failed", "1 = the last drill that has ended failed.", *GUEST)
DRILL_MAX_AGE = _gauge(
    "drill_max_age_seconds", "The age that the last good drill may have; 0 = nothing is promised.", *GUEST
)

# Its copies in another repository.
LAST_COPY = _gauge(
    "last_copy_timestamp_seconds", "The point in time of the newest copy at the target; 0 = never.", *GUEST, "target"
)
COPY_MAX_AGE = _gauge(
    "copy_max_age_seconds", "The age that the newest copy may have; 0 = nothing is promised.", *GUEST, "target"
)

# A repository.
UP = _gauge("repository_up", "1 = the repository could be read when it was last looked at.", *REPOSITORY)
REPOSITORY_KNOWN_SINCE = _gauge(
    "repository_known_since_timestamp_seconds", "When this host first had it in its configuration.", *REPOSITORY
)
REPOSITORY_BYTES = _gauge("repository_bytes", "Bytes of all objects; NaN = not counted yet.", *REPOSITORY)
REPOSITORY_OBJECTS = _gauge("repository_objects", "Number of all objects; NaN = not counted yet.", *REPOSITORY)
POINTS = _gauge("repository_points", "Number of restore points.", *REPOSITORY)
DAMAGED = _gauge("repository_damaged_objects", "Objects of the repository that are known to be damaged.", *REPOSITORY)
PRUNED = _gauge("last_prune_timestamp_seconds", "When this host last pruned it well; 0 = never.", *REPOSITORY)
PRUNE_MAX_AGE = _gauge(
    "prune_max_age_seconds", "The age that the last prune may have; 0 = nothing is promised.", *REPOSITORY
)
REPOSITORY_VERIFIED = _gauge(
    "repository_last_verified_timestamp_seconds", "When this host last verified all of it; 0 = never.", *REPOSITORY
)
VERIFY_MAX_AGE = _gauge(
    "verify_max_age_seconds", "The age that the last verification may have; 0 = nothing is promised.", *REPOSITORY
)

ALL: tuple[Series, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Series))
