"""Entry point of `python -m storymesh_client`, for when the command is not on PATH."""

import sys

from .command import main

sys.exit(main())
