"""The XML of a job."""

from vmbackup.hypervisor.live.jobxml import JobDisk, backup_xml, checkpoint_xml, job_socket, scratch_devices
from vmbackup.hypervisor.tidy.checkpoints import redefine_xml
from vmbackup.hypervisor.xmltree import parse


def test_every_disk_is_listed_and_only_incremental_ones_name_the_parent() -> None:
    """An unlisted disk would be backed up by libvirt's default; a full one has no bitmap in its export."""
    disks = [JobDisk("vda", "incremental", "/s/a"), JobDisk("vdb", "reread", "/s/b"), JobDisk("vdc", "full", "/s/c")]
    root = parse(backup_xml("/run/x.sock", disks, ["sda"], "parent"))
    found = {disk.get("name"): disk for disk in root.findall("./disks/disk")}
    assert list(found) == ["vda", "vdb", "vdc", "sda"]
    assert root.get("mode") == "pull"
    vda = found["vda"]
    assert (vda.get("backupmode"), vda.get("incremental"), vda.get("exportname"), vda.get("exportbitmap")) == (
        "incremental", "parent", "vda", "vmbackup",
    )  # fmt: skip
    for target in ("vdb", "vdc"):
        disk = found[target]
        assert (disk.get("backupmode"), disk.get("incremental"), disk.get("exportbitmap")) == ("full", None, None)
    scratch = vda.find("scratch")
    assert scratch is not None
    assert scratch.get("file") == "/s/a"
    assert found["sda"].attrib == {"name": "sda", "backup": "no"}
    assert job_socket(backup_xml("/run/x.sock", disks, [], "p")) == "/run/x.sock"


def test_names_are_escaped() -> None:
    """A path may hold what XML means something by."""
    xml = backup_xml("/run/<&'\">.sock", [JobDisk("vda", "full", "/s/<&>")], [], None)
    assert job_socket(xml) == "/run/<&'\">.sock"


def test_a_checkpoint_covers_only_tracked_disks() -> None:
    """raw in a checkpoint would be refused."""
    root = parse(checkpoint_xml("name", ["vda"], ["vdb", "sda"]))
    assert root.findtext("name") == "name"
    assert {disk.get("name"): disk.get("checkpoint") for disk in root.findall("./disks/disk")} == {
        "vda": "bitmap", "vdb": "no", "sda": "no",
    }  # fmt: skip


def test_the_scratch_nodes_are_found_in_the_jobs_xml() -> None:
    """Thresholds are set on vda[3]."""
    xml = (
        "<domainbackup mode='pull'><server transport='unix' socket='/s'/><disks>"
        "<disk name='vda' backup='yes' index='3'/><disk name='vdb' backup='no'/></disks></domainbackup>"
    )
    assert scratch_devices(xml) == {"vda": "vda[3]"}


def test_a_push_job_has_no_socket() -> None:
    """Somebody's push job is not ours."""
    assert job_socket("<domainbackup mode='push'/>") == ""


def test_the_least_xml_that_redefines() -> None:
    """Name, time, disks with their bitmaps."""
    root = parse(redefine_xml("n", "12", ["vda"]))
    disk = root.find("./disks/disk")
    assert disk is not None
    assert (root.findtext("creationTime"), disk.attrib) == (
        "12",
        {"name": "vda", "checkpoint": "bitmap", "bitmap": "n"},
    )
