"""Command line of the edge: `python envoy render|check|serve`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import yaml
from edge.bootstrap import bootstrap
from edge.process import EnvoyError, serve, validate
from edge.settings import SettingsError, load

from kit.runtime import unknown_settings
from mesh.contract import ContractError, read

HERE = Path(__file__).resolve().parent


def main() -> int:
    options = _parser().parse_args()
    # The edge reads no STORYMESH_ variable, but refuses misspelt ones: a setting without effect is a fault that nobody sees.
    if unknown := unknown_settings.in_environment(os.environ):
        for name, sentence in unknown:
            print(f"edge: {name} {sentence}", file=sys.stderr)
        return os.EX_CONFIG
    try:
        settings = load(options.settings, options.set)
        rendered = yaml.safe_dump(bootstrap(settings, read(settings.files.contract)), sort_keys=False, width=120)
        if options.command == "render":
            return _write(rendered, options.output)
        if options.command == "check":
            return validate(rendered)
        return serve(rendered, settings)
    except (SettingsError, ContractError, EnvoyError) as error:
        print(f"edge: {error}", file=sys.stderr)
        return 1


def _write(rendered: str, output: Path | None) -> int:
    if output is None:
        sys.stdout.write(rendered)
    else:
        output.write_text(rendered)
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--settings", type=Path, default=HERE / "edge.yaml", help="the settings file (default: envoy/edge.yaml)"
    )
    common.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override one setting, with a YAML value; may be repeated. Examples: listen=0.0.0.0:8080, admin=127.0.0.1:9901, "
        "services.auth=10.0.0.7:50051,10.0.0.8:50051, tracing.otlp=127.0.0.1:4317, rate_limit.on_failure.default=deny",
    )
    parser = argparse.ArgumentParser(prog="python envoy", description="Render, check or run the edge of the mesh.")
    commands = parser.add_subparsers(dest="command", required=True)
    render = commands.add_parser("render", parents=[common], help="write Envoy's configuration")
    render.add_argument("--output", type=Path, help="where to (default: standard output)")
    commands.add_parser("check", parents=[common], help="render and let Envoy validate the result")
    commands.add_parser("serve", parents=[common], help="render and run Envoy, draining it on SIGTERM")
    return parser


if __name__ == "__main__":
    sys.exit(main())
