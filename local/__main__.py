"""Entry point of `python -m local`."""

import logging
import signal
import sys
import time

from mesh.manifest import ManifestError

try:
    # The runner's settings are made from the manifests.
    from local.terminal.cli import main
except ManifestError as fault:
    sys.exit(str(fault))

# Log times are UTC, as in every other log of the mesh.
logging.Formatter.converter = time.gmtime
logging.basicConfig(level=logging.WARNING, format="%(asctime)s UTC %(message)s", stream=sys.stdout)
logging.getLogger("local").setLevel(logging.INFO)
# SIGTERM is handled as Ctrl-C: an interrupted `up` stops what it has started.
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(main())
