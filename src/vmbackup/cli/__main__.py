"""`python -m vmbackup.cli`: the same as the program `vmbackup`."""

import sys

from vmbackup.cli import main

sys.exit(main())
