"""Runs every benchmark, and writes one table and one chart into docs/."""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import benchmarks

from .pipeline.jobs.contest import PEERS
from .results import Results, as_markdown, reached

_DOCS = Path(__file__).parents[1] / "docs"


def main(arguments: Sequence[str] | None = None) -> int:
    known = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if _runs(module))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="small measurements: show that all of them run")
    parser.add_argument(
        "--into", type=Path, default=_DOCS, metavar="FOLDER", help="where the table goes (default: docs)"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.names).difference(known):
        parser.error(f"no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    results = []
    failed = []
    for name in options.names or known:
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        begun = time.monotonic()
        result = _measured(name, quick=options.quick)
        print(f"{'failed' if result is None else 'done'} after {time.monotonic() - begun:.0f} s", file=sys.stderr)
        if result is None:
            failed.append(name)
        else:
            results.append(result)
    if results:
        _write(results, options.into)
    if failed:
        print(f"not in the table, because they failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _runs(module: pkgutil.ModuleInfo) -> bool:
    return module.ispkg and find_spec(f"benchmarks.{module.name}.__main__") is not None


def _measured(name: str, *, quick: bool) -> Results | None:
    """The results; None if the benchmark failed, which has then told why on standard error.

    A process for each: none is measured in an interpreter that another one filled.
    """
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if quick else [])]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603  # our own module
    return None if run.returncode else Results.parse(name, json.loads(run.stdout))


def _write(results: Sequence[Results], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chart = folder / "benchmark-results.svg"
    drawn = _draw(reached(results), chart)
    table = folder / "benchmark-results.md"
    table.write_text(as_markdown(results, chart.name if drawn else ""))
    print(table)


def _draw(parts: Sequence[tuple[str, float]], file: Path) -> bool:
    """Whether there is a chart. It is drawn in a process of its own, because matplotlib is installed apart."""
    if not (PEERS / "matplotlib").exists():
        print("no chart: matplotlib is not installed (make bench installs it)", file=sys.stderr)
        return False
    command = [sys.executable, "-m", "benchmarks.chart", str(file)]
    environment = os.environ | {"PYTHONPATH": str(PEERS)}
    subprocess.run(command, input=json.dumps(parts), text=True, env=environment, check=True)  # noqa: S603  # our own module
    return True


if __name__ == "__main__":
    sys.exit(main())
