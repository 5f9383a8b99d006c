"""vmbackup and its peers on the same running domain, in turn, and what each cost: see README.md beside this."""
