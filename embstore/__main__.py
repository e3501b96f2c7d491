"""`python -m embstore`, the same as the command `embstore`."""

import sys

from embstore.cli import main

sys.exit(main())
