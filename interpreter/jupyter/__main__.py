"""Entry point of ``python -m interpreter.jupyter``."""

import signal
import sys

# A client interrupts kernels that it shuts down, also one that is about to start.
signal.signal(signal.SIGINT, signal.SIG_IGN)

from interpreter.jupyter.launcher import main  # noqa: E402

sys.exit(main())
