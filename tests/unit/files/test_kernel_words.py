"""The log of the kernel that reads the guest's file systems, as Linux 6.1 wrote it of damaged ones."""

from __future__ import annotations

from vmbackup.engine.files.kernel_words import damage_in

LOG = """\
total 0
lrwxrwxrwx 1 0 0 0 Nov 29 09:13 dm-0 -> ../devices/virtual/block/dm-0
lrwxrwxrwx 1 0 0 0 Nov 29 09:13 sda -> ../devices/pci0000:00/0000:00:03.0/virtio1/host2/target2:0:1/2:0:1:0/block/sda
lrwxrwxrwx 1 0 0 0 Nov 29 09:13 sdb -> ../devices/pci0000:00/0000:00:03.0/virtio1/host2/target2:0:0/2:0:0:0/block/sdb
lrwxrwxrwx 1 0 0 0 Nov 29 09:13 sdc -> ../devices/pci0000:00/0000:00:03.0/virtio1/host2/target2:0:2/2:0:2:0/block/sdc
sd 2:0:0:0: Power-on or device reset occurred
EXT4-fs error (device sda1): ext4_readdir:261: inode #17: block 4390: comm guestfsd: path /sysroot/odd: bad entry in directory: inode out of bounds
EXT4-fs error (device sda1): ext4_lookup:1855: inode #17: comm tar: iget: checksum invalid
VFS: Lookup of 'a' in ext4 sda1 would have caused loop
EXT4-fs (sdb1): group descriptors corrupted!
XFS (dm-0): Metadata corruption detected at xfs_agi_verify+0x117/0x1f0, xfs_agi block 0x2
BTRFS error (device sdb2): 'root' is not a valid subvolume
FAT-fs (sdb3: state x): error, fat_get_cluster: invalid cluster chain
"""  # noqa: E501 (as it is)


def test_the_first_error_of_each_file_system() -> None:
    """By the guest's names, whatever letters the kernel has given out; without what is of the reader's own doing."""
    assert damage_in(LOG, ["vda", "vdb"]) == {
        "/dev/vdb1": "EXT4-fs error: inode #17: block 4390: path /odd: bad entry in directory: inode out of bounds",
        "/dev/vda1": "EXT4-fs: group descriptors corrupted!",
        "a volume (dm-0)": "XFS: Metadata corruption detected at xfs_agi_verify+0x117/0x1f0, xfs_agi block 0x2",
        "/dev/vda3": "FAT-fs: error, fat_get_cluster: invalid cluster chain",
    }  # fmt: skip


def test_a_guest_cannot_make_it_long() -> None:
    (words,) = damage_in(f"EXT4-fs error (device sda): {'p' * 5000}\n", ["vda"]).values()
    assert len(words) == 200
