"""The configuration file: TOML, checked as a whole, every mistake at once with its file and line.

models   what the file may hold (pydantic)          units      sizes and durations
load     from a path to a Config                    schedule   when a job is due
mistakes how a mistake is told                      positions  which line a key stands on
checks   what one key asks of another               secrets    passphrases, by file, credential, command
stores   what a bucket needs beside its url

Nothing is imported here: units and mistakes are used by commands that need no configuration.
"""
