"""Files out of a guest's file systems, read in a confined process."""
