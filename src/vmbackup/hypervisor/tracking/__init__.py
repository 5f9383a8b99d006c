"""Changed-block tracking for raw disks."""
