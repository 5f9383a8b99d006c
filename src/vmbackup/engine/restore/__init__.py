"""A restore point brought back: into new files, onto what is there, as a chain, in place."""
