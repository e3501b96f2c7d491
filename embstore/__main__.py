"""`python -m embstore`, the same as the command `embstore`."""

import sys


def main() -> int:
    """Run the command, and return its exit status. Ctrl-C during the imports ends it without a traceback too."""
    try:
        from embstore.cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
