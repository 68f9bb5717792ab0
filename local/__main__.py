"""`python -m local`."""

import logging
import signal
import sys

from local.terminal.cli import main

logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stdout)
logging.getLogger("local").setLevel(logging.INFO)
# An `up` that is asked to end takes down what it has started, as it does on Ctrl-C.
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(main())
