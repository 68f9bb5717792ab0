"""`python -m storymesh_client`, where the command is not on the path."""

import sys

from .command import main

sys.exit(main())
