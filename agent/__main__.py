"""`python -m agent` and the installed command."""

import sys

from agent.cli import main as _main


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(_main(sys.argv[1:]))


if __name__ == "__main__":
    main()
