"""The backup job of a guest that runs: begun, watched, read, ended."""
