"""`python -m lab`: see lab.cli.commands."""

import sys

from lab.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
