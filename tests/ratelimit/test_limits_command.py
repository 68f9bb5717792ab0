"""`storymesh limits`: what administrators do at a terminal, against the operators' service and a real limiter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis

from storymesh_client import limits
from storymesh_client.client import Storymesh
from storymesh_client.command import parser
from storymesh_client.tokens import Kept, MemoryTokens, Tokens
from tests.ratelimit.administering import ADDRESS, BY_ADDRESS, Limiter, administered
from tests.ratelimit.test_administration import RULES

Terminal = Callable[..., Awaitable[str]]
"""Runs `storymesh limits` with these arguments, and returns what it prints."""


@pytest.fixture
async def limiter(limiter_redis: Redis, tmp_path: Path) -> AsyncIterator[Limiter]:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    async with administered(limiter_redis, rules) as running:
        yield running


@pytest.fixture
async def terminal(limiter: Limiter, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Terminal]:
    later = datetime.now(UTC) + timedelta(minutes=9)
    tokens = MemoryTokens()
    kept = Kept(Tokens(limiter.issuer.token(limiter.administrator, "ADMIN"), later, "unused", later))
    tokens.change(limiter.door, lambda _: kept)
    async with Storymesh(limiter.door, tls=False, tokens=tokens) as mesh:

        async def run(*arguments: str) -> str:
            await limits.run(mesh, parser().parse_args(["limits", *arguments]))
            return capsys.readouterr().out

        yield run


async def test_a_refusal_is_explained_and_its_bucket_shown_and_filled(limiter: Limiter, terminal: Terminal) -> None:
    explained = await terminal("explain", "--address", ADDRESS, "--class", "default")
    assert "default passes, by default-per-address" in explained
    assert "  default-per-address applies: 60/h" in explained
    assert await limiter.passes(BY_ADDRESS, hits=100)
    assert not await limiter.passes(BY_ADDRESS)
    explained = await terminal("explain", "--address", ADDRESS, "--class", "default")
    assert "default is refused: RATE_LIMITED, by default-per-address, until 2" in explained
    assert "  default-per-address refuses: 60/h" in explained
    assert "default-per-address  0 of " in await terminal("inspect", "--address", ADDRESS, "--class", "default")
    assert "class=default client_ip=192.0.2.7/32  default-per-address" in await terminal("offenders")
    filled = await terminal("reset", "--address", ADDRESS, "--reason", "asked by support")
    assert filled == "1 bucket was not full and is now.\n"
    assert await limiter.passes(BY_ADDRESS)
    assert "reset  client_ip=192.0.2.7" in await terminal("changes")


async def test_the_rules_in_force_are_listed_with_their_places(limiter: Limiter, terminal: Terminal) -> None:
    listed, of_file = await terminal("rules"), limiter.operations.rules.current()
    names = [each.name for each in (*of_file.rules, *of_file.leases)]
    assert [line.split()[0] for line in listed.splitlines()[2:]] == names
    assert "rules.yaml:" in listed


async def test_a_caller_is_banned_and_granted_for_a_time_listed_and_lifted(
    limiter: Limiter, terminal: Terminal
) -> None:
    banned = await terminal("ban", "--address", "192.0.2.0/24", "--for", "15m", "--reason", "floods us")
    assert banned.startswith("Made: ban for class=* client_ip=192.0.2.0/24: blocked until 2")
    assert not await limiter.passes(BY_ADDRESS)
    explained = await terminal("explain", "--address", ADDRESS, "--class", "default")
    assert explained.startswith("default is refused: RATE_LIMIT_BANNED, by ban-")
    override_id = banned.rpartition(" ")[2].strip()
    assert f"{override_id}  ban   class=* client_ip=192.0.2.0/24" in await terminal("overrides")
    assert await terminal("lift", override_id, "--reason", "over") == (
        "Lifted: ban for class=* client_ip=192.0.2.0/24.\n"
    )
    granted = await terminal(
        "grant", "--address", ADDRESS, "--rate", "100/s", "--burst", "200", "--for", "2h", "--reason", "an import"
    )
    assert "grant for class=* client_ip=192.0.2.7/32: 100/s, burst 200 until 2" in granted
    assert await limiter.passes(BY_ADDRESS, hits=200)


@pytest.mark.parametrize("lasts", ["", "h", "1", "1w", "-1h", "1.5h", "9999999d"])
def test_a_duration_that_is_none_is_told(lasts: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["limits", "ban", "--user", "x", f"--for={lasts}", "--reason", "r"])
    assert "is not a time; write one such as 90s, 15m, 2h or 30d" in capsys.readouterr().err
