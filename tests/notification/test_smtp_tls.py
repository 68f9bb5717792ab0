"""TLS with the mail server, and the password that does not go without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.notification.adapters.smtp import Handover, MailError, NeedsOperator, NoConnection, Smtp, Stage, TryAgain
from tests.notification.certificates import Authority
from tests.notification.smtp_servers import MailServer, listening, smtp
from tests.waiting import until

USERNAME, PASSWORD = "mesh", "correct horse"
ACCOUNTS = {USERNAME: PASSWORD}
LOGIN: dict[str, Any] = {"username": USERNAME, "password": PASSWORD}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.new(tmp_path)


async def send(client: Smtp) -> None:
    handover = Handover()
    try:
        await client.send("no-reply@mail.example", "ada@example.com", b"Subject: hello\r\n\r\nhi\r\n", handover)
    except MailError:
        assert handover.stage is Stage.UNSEEN
        raise
    finally:
        client.close()


async def refusal(server: MailServer, **options: Any) -> MailError:
    """The error by which a mail is kept, that neither content nor password left for."""
    async with listening(server):
        with pytest.raises(TryAgain) as raised:
            await send(smtp(server, **options))
    assert server.mails == []
    assert server.logins == []
    return raised.value


async def test_a_mail_goes_encrypted_where_starttls_is_offered(authority: Authority) -> None:
    server = MailServer(tls=authority.server())
    async with listening(server):
        await send(smtp(server))
        await until(lambda: server.open == 0)
    assert server.encrypted == [True]
    assert server.verbs == ["EHLO", "STARTTLS", "EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


async def test_a_mail_goes_in_clear_where_no_tls_is_offered_and_none_asked_for() -> None:
    server = MailServer()
    async with listening(server):
        await send(smtp(server))
    assert server.encrypted == [False]


@pytest.mark.parametrize("kind", ["another authority", "another name", "ended"])
async def test_opportunistic_tls_without_a_password_takes_any_certificate(authority: Authority, kind: str) -> None:
    server = MailServer(tls=_wrong(authority, kind))
    async with listening(server):
        await send(smtp(server))
    assert server.encrypted == [True]


BROKEN: dict[str, dict[str, Any]] = {
    "the server answers with something else": {"breaks_tls": True},
    "the server hangs up": {"cuts_at": "STARTTLS"},
    "the server refuses for now": {"starttls": "454 4.7.0 TLS not available"},
    "the server refuses": {"starttls": "554 5.7.3 no"},
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_mail_without_a_password_goes_in_clear_where_opportunistic_tls_fails(
    authority: Authority, kind: str
) -> None:
    server = replace(MailServer(tls=authority.server()), **BROKEN[kind])
    async with listening(server):
        await send(smtp(server))
    assert server.encrypted == [False]


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("options", [{"tls": "starttls"}, LOGIN, {**LOGIN, "password_in_clear": True}])
async def test_nothing_goes_where_tls_is_needed_and_fails(authority: Authority, kind: str, options: Any) -> None:
    server = replace(MailServer(tls=authority.server(), accounts=ACCOUNTS), **BROKEN[kind])
    error = await refusal(server, ca_file=authority.file, **options)
    passing = kind in ("the server hangs up", "the server refuses for now")
    assert isinstance(error, NeedsOperator) != passing


async def test_nothing_goes_by_starttls_to_a_server_that_does_not_offer_it() -> None:
    assert isinstance(await refusal(MailServer(), tls="starttls"), NeedsOperator)


@pytest.mark.parametrize("tls", ["opportunistic", "starttls", "implicit"])
async def test_the_password_goes_encrypted(authority: Authority, tls: str) -> None:
    server = MailServer(tls=authority.server(), implicit=tls == "implicit", accounts=ACCOUNTS)
    async with listening(server):
        await send(smtp(server, tls=tls, ca_file=authority.file, **LOGIN))
    assert server.logins == [(USERNAME, PASSWORD, True)]
    assert server.encrypted == [True]


async def test_the_password_does_not_go_to_a_server_without_tls() -> None:
    error = await refusal(MailServer(accounts=ACCOUNTS), **LOGIN)
    assert isinstance(error, NeedsOperator)
    assert "password" in str(error)


async def test_the_password_goes_in_clear_if_a_setting_says_so() -> None:
    server = MailServer(accounts=ACCOUNTS)
    async with listening(server):
        await send(smtp(server, password_in_clear=True, **LOGIN))
    assert server.logins == [(USERNAME, PASSWORD, False)]


@pytest.mark.parametrize("kind", ["another authority", "another name", "ended"])
@pytest.mark.parametrize("tls", ["opportunistic", "starttls", "implicit"])
async def test_a_wrong_certificate_gets_no_password_and_no_mail(authority: Authority, kind: str, tls: str) -> None:
    server = MailServer(tls=_wrong(authority, kind), implicit=tls == "implicit", accounts=ACCOUNTS)
    error = await refusal(server, tls=tls, ca_file=authority.file, **LOGIN)
    assert isinstance(error, NeedsOperator)
    assert "certificate" in str(error)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_certificate_is_checked_also_without_a_password(authority: Authority, tls: str) -> None:
    server = MailServer(tls=authority.server(), implicit=tls == "implicit")
    error = await refusal(server, tls=tls)
    assert isinstance(error, NeedsOperator)


async def test_implicit_tls_does_not_speak_to_a_server_in_clear() -> None:
    server = MailServer()
    await refusal(server, tls="implicit", seconds=1.0)
    assert server.lines == []


@pytest.mark.parametrize("step", ["CONNECT", "EHLO", "STARTTLS", "AUTH"])
async def test_a_server_that_hangs_on_the_way_to_the_login_is_given_up(authority: Authority, step: str) -> None:
    server = MailServer(tls=authority.server(), accounts=ACCOUNTS, hesitates_at=step)
    assert isinstance(await refusal(server, ca_file=authority.file, seconds=0.5, **LOGIN), NoConnection)


REFUSED_LOGINS: dict[str, tuple[dict[str, Any], type[MailError]]] = {
    "wrong": ({"accounts": {USERNAME: "other"}}, NeedsOperator),
    "not known": ({"accounts": {"other": "other"}}, NeedsOperator),
    "refused for now": ({"accounts": ACCOUNTS, "login": "454 4.7.0 later"}, TryAgain),
    "refused": ({"accounts": ACCOUNTS, "login": "534 5.7.9 too weak"}, NeedsOperator),
}


@pytest.mark.parametrize("kind", REFUSED_LOGINS)
async def test_a_refused_login_means_us_and_no_recipient(authority: Authority, kind: str) -> None:
    options, error = REFUSED_LOGINS[kind]
    server = replace(MailServer(tls=authority.server()), **options)
    async with listening(server):
        with pytest.raises(TryAgain) as raised:
            await send(smtp(server, ca_file=authority.file, **LOGIN))
    assert type(raised.value) is error
    assert server.mails == []


@pytest.mark.parametrize("auth", ["AUTH LOGIN", "AUTH PLAIN", "AUTH=LOGIN PLAIN"])
async def test_each_common_way_to_log_in_is_known(authority: Authority, auth: str) -> None:
    server = MailServer(tls=authority.server(), accounts=ACCOUNTS, auth=auth)
    async with listening(server):
        await send(smtp(server, ca_file=authority.file, **LOGIN))
    assert server.logins == [(USERNAME, PASSWORD, True)]


@pytest.mark.parametrize("auth", ["X-NOTHING", "AUTH", "AUTH GSSAPI"])
async def test_a_server_without_a_known_login_means_us(authority: Authority, auth: str) -> None:
    server = MailServer(tls=authority.server(), accounts=ACCOUNTS, auth=auth)
    assert isinstance(await refusal(server, ca_file=authority.file, **LOGIN), NeedsOperator)


async def test_what_an_attacker_adds_before_the_handshake_is_not_taken_for_the_servers(authority: Authority) -> None:
    server = MailServer(tls=authority.server(), injected="250 AUTH PLAIN\r\n")
    async with listening(server):
        await send(smtp(server, tls="starttls", ca_file=authority.file))
        await until(lambda: server.open == 0)
    assert server.verbs == ["EHLO", "STARTTLS", "EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


@pytest.mark.parametrize("tls", ["opportunistic", "implicit"])
async def test_health_asks_in_the_way_in_which_the_server_listens(authority: Authority, tls: str) -> None:
    server = MailServer(tls=authority.server(), implicit=tls == "implicit")
    async with listening(server):
        await smtp(server, tls=tls, ca_file=authority.file).check()
    assert server.verbs == ["QUIT"]


def _wrong(authority: Authority, kind: str) -> Any:
    if kind == "another authority":
        folder = authority.folder / "other"
        folder.mkdir()
        return Authority.new(folder, "another authority").server()
    return authority.server("mail.example.org") if kind == "another name" else authority.server(ended=True)
