"""A module that the tests have started as a fork: tells what it was given, then ends as it is told."""

from __future__ import annotations

import json
import os
import signal
import sys

if __name__ == "__main__":
    told = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "leads_its_session": os.getsid(0) == os.getpid(),
    }
    print(json.dumps(told), flush=True)
    match sys.argv[1]:
        case "exit":
            sys.exit(int(sys.argv[2]))
        case "raise":
            raise RuntimeError("as asked")
        case "wait":
            signal.pause()
