"""`python -m local`."""

import logging
import signal
import sys
import time

from local.terminal.cli import main

# UTC, as in every other log of the mesh.
logging.Formatter.converter = time.gmtime
logging.basicConfig(level=logging.WARNING, format="%(asctime)s UTC %(message)s", stream=sys.stdout)
logging.getLogger("local").setLevel(logging.INFO)
# An `up` that is asked to end takes down what it has started, as it does on Ctrl-C.
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(main())
