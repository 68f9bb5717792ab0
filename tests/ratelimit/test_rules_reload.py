"""Rules that change while the service runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kit.runtime.metrics import Metrics
from services.ratelimit.model.rules import RuleSet
from services.ratelimit.operations.reload import LiveRules
from services.ratelimit.store.rules_file import BadRules, load
from tests.kit.numbers import numbers

RULES = """\
domain: storymesh
on_no_match: allow
rules:
  - {name: NAME, match: [{key: class}], rate: 10/s, burst: 20, on_redis_down: open}
"""


def write(path: Path, name: str) -> None:
    path.write_text(RULES.replace("NAME", name))


def spoil(path: Path) -> None:
    path.write_text("domain: storymesh\n")


def remove(path: Path) -> None:
    path.unlink()


def names(rules: LiveRules) -> list[str]:
    return [rule.name for rule in rules.current().rules]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    write(path, "first")
    return path


@pytest.fixture
async def rules(path: Path) -> AsyncIterator[LiveRules]:
    rules = LiveRules(path, load, look_every_seconds=0.02)
    stopping = asyncio.Event()
    following = asyncio.create_task(rules.follow(stopping))
    await asyncio.sleep(0)
    yield rules
    stopping.set()
    await following


async def test_a_changed_file_is_in_force_without_a_restart(rules: LiveRules, path: Path) -> None:
    write(path, "second-version")
    await until(lambda: names(rules) == ["second-version"])


async def test_a_file_that_is_swapped_by_a_link_is_noticed(tmp_path: Path) -> None:
    """Kubernetes replaces mounted files in this way."""
    old, new, link = tmp_path / "old.yaml", tmp_path / "new.yaml", tmp_path / "link.yaml"
    write(old, "first")
    write(new, "other")
    os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    link.symlink_to(old)
    rules, stopping = LiveRules(link, load, look_every_seconds=0.02), asyncio.Event()
    following = asyncio.create_task(rules.follow(stopping))
    (tmp_path / "next").symlink_to(new)
    (tmp_path / "next").replace(link)
    await until(lambda: names(rules) == ["other"])
    stopping.set()
    await following


async def test_a_hangup_reads_the_file_again(rules: LiveRules, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: any("are in force now" in record.getMessage() for record in caplog.records))
    assert names(rules) == ["first"]


async def test_bad_rules_leave_those_in_force_and_are_told_once(
    rules: LiveRules, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(path)
    await until(lambda: bool(caplog.records))
    remove(path)
    await until(lambda: len(caplog.records) == 2)
    assert names(rules) == ["first"]
    assert "the rules in force stay, because the new ones are unusable: " in caplog.records[0].getMessage()
    assert "cannot be read" in caplog.records[1].getMessage()
    write(path, "mended")
    await until(lambda: names(rules) == ["mended"])
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


async def test_health_and_metrics_say_while_the_file_cannot_be_used(rules: LiveRules, path: Path) -> None:
    metrics = Metrics()
    rules.show_in(metrics)
    await rules.check()
    assert (await numbers(metrics))["storymesh_rate_limit_rules_current"] == 1
    spoil(path)
    await until(lambda: rules.faulty)
    with pytest.raises(BadRules, match="has no on_no_match"):
        await rules.check()
    shown = await numbers(metrics)
    assert shown["storymesh_rate_limit_rules_current"] == 0
    assert shown["storymesh_rate_limit_rules"] == 1
    assert shown['storymesh_rate_limit_reloads_total{outcome="refused"}'] == 1
    assert names(rules) == ["first"]
    write(path, "mended")
    await until(lambda: not rules.faulty)
    await rules.check()
    shown = await numbers(metrics)
    assert shown["storymesh_rate_limit_rules_current"] == 1
    assert shown['storymesh_rate_limit_reloads_total{outcome="taken"}'] == 1


async def test_a_failure_of_any_kind_leaves_the_rules_in_force(path: Path) -> None:
    def fail(_path: Path) -> RuleSet:
        raise MemoryError("too much")

    loads = iter([load, fail])

    def load_once(each: Path) -> RuleSet:
        return next(loads)(each)

    rules, stopping = LiveRules(path, load_once, look_every_seconds=0.02), asyncio.Event()
    following = asyncio.create_task(rules.follow(stopping))
    write(path, "second-version")
    await until(lambda: rules.faulty)
    assert names(rules) == ["first"]
    stopping.set()
    await following


async def test_a_file_that_a_folder_gains_or_loses_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    write(folder / "a.yaml", "first")
    rules, stopping = LiveRules(folder, load, look_every_seconds=0.02), asyncio.Event()
    following = asyncio.create_task(rules.follow(stopping))
    (tmp_path / "b").write_text(RULES.replace("NAME", "second").replace("storymesh", "other"))
    (tmp_path / "b").replace(folder / "b.yaml")
    await until(lambda: names(rules) == ["first", "second"])
    (folder / "b.yaml").unlink()
    await until(lambda: names(rules) == ["first"])
    stopping.set()
    await following


def test_bad_rules_at_the_start_are_refused(path: Path) -> None:
    path.write_text("rules: []\n")
    with pytest.raises(BadRules):
        LiveRules(path, load)
