"""The command `python envoy`, as operators and the local mesh call it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "envoy", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )


def test_render_writes_a_configuration_with_the_overrides(tmp_path: Path) -> None:
    output = tmp_path / "envoy.yaml"
    ran = run("render", "--output", str(output), "--set", "listen=127.0.0.1:1234")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    listener = yaml.safe_load(output.read_text())["static_resources"]["listeners"][0]
    assert listener["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 1234}


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert run("render").stdout == run("render").stdout


def test_envoy_accepts_the_checked_in_settings() -> None:
    ran = run("check")
    assert ran.returncode == 0, ran.stderr
    # Envoy warns about fields that are deprecated or unsafe for untrusted traffic.
    assert "deprecated" not in ran.stderr.lower()
    assert "work-in-progress" not in ran.stderr


def test_a_setting_that_cannot_be_used_is_one_sentence() -> None:
    ran = run("check", "--set", "listen=nowhere")
    assert ran.returncode == 1
    assert ran.stderr.startswith("edge: ")
    assert "listen" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
