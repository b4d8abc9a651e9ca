"""python -m edgec.cli: the same as the command `edgec`."""

import sys

from edgec.cli import main

sys.exit(main())
