"""`python -m perrin`."""

import sys

from perrin.cli import main

sys.exit(main())
