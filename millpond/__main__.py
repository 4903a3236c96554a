"""`python -m millpond`: the command line."""

import sys

from millpond.cli import main

sys.exit(main())
