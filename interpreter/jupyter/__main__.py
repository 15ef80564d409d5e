"""Entry point of ``python -m interpreter.jupyter``."""

import sys

from interpreter.jupyter.launcher import main

sys.exit(main())
