"""The harness for tests: servers of their own, with the rights that services have."""

import email
import smtplib
from email.policy import default
from pathlib import Path

import psycopg
import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from local.harness import servers


async def test_each_service_reaches_only_its_own_database_and_cannot_wipe_redis(tmp_path: Path) -> None:
    async with servers(tmp_path, mail=False) as running:
        own = running.database_url("auth").replace("+psycopg", "")
        with psycopg.connect(own) as connection:
            connection.execute("CREATE TABLE mine (id int)")
        for foreign in ("story", "notification", "postgres", "template1"):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(own.removesuffix("auth") + foreign)
        async with Redis.from_url(running.service_redis_url("auth")) as client:
            assert await client.set("codes:1", "1")
            with pytest.raises(NoPermissionError):
                await client.flushall()


async def test_two_parallel_runs_do_not_collide(tmp_path: Path) -> None:
    first = servers(tmp_path / "first", postgres=False, mail=False)
    second = servers(tmp_path / "second", postgres=False, mail=False)
    async with first, second, Redis.from_url(first.redis_url) as one, Redis.from_url(second.redis_url) as other:
        await one.set("owner", "first")
        assert await other.get("owner") is None


async def test_a_component_can_be_killed_stopped_and_restarted(tmp_path: Path) -> None:
    async with servers(tmp_path, postgres=False, mail=False) as running:
        async with Redis.from_url(running.redis_url) as client:
            await client.set("kept", "yes")
        first = running.pid("redis")
        running.kill("redis")
        second = await running.healthy("redis", not_pid=first)
        assert running.restarts("redis") == 1
        async with Redis.from_url(running.redis_url) as client:
            assert await client.get("kept") == b"yes"
        await running.restart("redis")
        third = running.pid("redis")
        assert len({first, second, third}) == 3
        assert running.restarts("redis") == 1
        await running.stop("redis")
        with pytest.raises(LookupError):
            running.pid("redis")
        await running.start("redis")
        assert running.pid("redis")


def test_mails_become_complete_files_in_order_of_arrival(tmp_path: Path) -> None:
    with servers(tmp_path, postgres=False, redis=False) as running:
        with smtplib.SMTP("127.0.0.1", running.smtp_port) as client:
            for number in range(3):
                client.sendmail("from@example.com", ["to@example.com"], f"Subject: {number}\r\n\r\nGrüße\r\n".encode())
        names = sorted(path.name for path in running.mail_dir.iterdir())
        assert all(name.endswith(".eml") for name in names)
        mails = [email.message_from_bytes((running.mail_dir / name).read_bytes()) for name in names]
        assert [mail["Subject"] for mail in mails] == ["0", "1", "2"]
        assert {mail["X-RcptTo"] for mail in mails} == {"to@example.com"}


def test_an_envelope_is_kept_as_it_was_sent(tmp_path: Path) -> None:
    recipients = [
        "ada@example.org",
        "=?utf-8?q?ada?=@example.org",
        "=?utf-8?b?YWRhQGV4YW1wbGUub3Jn?=",
        '"ada <x>, \\"y\\""@example.org',
        "ada+tag=x@example.org",
        "Ada.LoveLace@EXAMPLE.org",
        "grüße@bücher.example",
        "postmaster",
    ]
    with servers(tmp_path, postgres=False, redis=False) as running:
        with smtplib.SMTP("127.0.0.1", running.smtp_port) as client:
            client.ehlo()
            for sender in ("<=?utf-8?q?a?=@example.org>", "<>"):
                assert client.docmd(f"MAIL FROM:{sender} SMTPUTF8")[0] == 250
                for recipient in recipients:
                    client.sock.sendall(f"RCPT TO:<{recipient}>\r\n".encode())  # type: ignore[union-attr]
                    assert client.getreply()[0] == 250, recipient
                assert client.docmd("RCPT TO:<@relay.example,@other.example:ada@example.org>")[0] == 250
                assert client.docmd("RCPT TO:<ada@example.org")[0] == 501
                assert client.data(b"Subject: x\r\nX-RcptTo: forged@example.org\r\n\r\n")[0] == 250
        for path, sender in zip(sorted(running.mail_dir.iterdir()), ("=?utf-8?q?a?=@example.org", "<>"), strict=True):
            mail = email.message_from_bytes(path.read_bytes(), policy=default)
            assert mail["X-MailFrom"] == sender
            assert mail.get_all("X-RcptTo") == [*recipients, "ada@example.org", "forged@example.org"]
