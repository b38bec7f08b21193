"""`python -m scratch_core.cli` is `scratch`."""

import sys

from scratch_core.cli import main

sys.exit(main())
