"""The URLs that a person may register, and the addresses that are connected to."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address, ip_network

import pytest
from pydantic import ValidationError

from services.notification.config import NotificationSettings
from services.notification.model.webhook_urls import NotAWebhookUrl, WebhookRules

RULES = WebhookRules(frozenset({443, 8443}))
LOCAL = WebhookRules(frozenset({443}), local=True)
KEY = "bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0="

TAKEN = {
    "https://hooks.example.com": "https://hooks.example.com/",
    "HTTPS://Hooks.Example.COM:443/A?b=C%20d": "https://hooks.example.com/A?b=C%20d",
    "https://hooks.example.com:8443/x;y=1/": "https://hooks.example.com:8443/x;y=1/",
    "https://xn--bcher-kva.example/": "https://xn--bcher-kva.example/",
    "https://a_b.example.com?x=//evil@host": "https://a_b.example.com/?x=//evil@host",
}


@pytest.mark.parametrize("url", TAKEN)
def test_a_public_https_url_is_taken_in_one_form(url: str) -> None:
    assert str(RULES.read(url)) == TAKEN[url]


REFUSED = {
    "http://hooks.example.com/": "URL_NOT_HTTPS",
    "ftp://hooks.example.com/": "URL_NOT_HTTPS",
    "file:///etc/passwd": "URL_NOT_HTTPS",
    "gopher://hooks.example.com:25/": "URL_NOT_HTTPS",
    "hooks.example.com": "URL_INVALID",
    "": "URL_INVALID",
    "https:hooks.example.com": "URL_INVALID",
    "https:\\\\hooks.example.com\\": "URL_INVALID",
    "https://user@hooks.example.com/": "URL_CREDENTIALS",
    "https://user:password@hooks.example.com/": "URL_CREDENTIALS",
    "https://hooks.example.com@127.0.0.1/": "URL_CREDENTIALS",
    "https://hooks.example.com/#fragment": "URL_INVALID",
    "https://hooks.example.com/a b": "URL_INVALID",
    "https://hooks.example.com/\r\nx-evil: 1": "URL_INVALID",
    "https://hooks.example.com/\u00e4": "URL_INVALID",
    "https://hooks.example.com/%zz": "URL_INVALID",
    "https://hooks.example.com/" + "x" * 2000: "URL_INVALID",
    "https://hooks.example.com:22/": "URL_PORT_REFUSED",
    "https://hooks.example.com:6379/": "URL_PORT_REFUSED",
    "https://hooks.example.com:80/": "URL_PORT_REFUSED",
    "https://hooks.example.com:0443/": "URL_INVALID",
    "https://hooks.example.com:+443/": "URL_INVALID",
    "https://hooks.example.com:70000/": "URL_PORT_REFUSED",
    "https://hooks.example.com:/": "URL_INVALID",
    "https://b\u00fccher.example/": "URL_HOST_INVALID",
    "https://hooks.example.com./": "URL_HOST_INVALID",
    "https:///path": "URL_HOST_INVALID",
    "https://localhost/": "URL_HOST_INVALID",
    "https://redis/": "URL_HOST_INVALID",
    "https://127.0.0.1/": "URL_HOST_INVALID",
    "https://127.1/": "URL_HOST_INVALID",
    "https://2130706433/": "URL_HOST_INVALID",
    "https://0x7f000001/": "URL_HOST_INVALID",
    "https://0x7f.1/": "URL_HOST_INVALID",
    "https://127.0.0.0x1/": "URL_HOST_INVALID",
    "https://0177.0.0.1/": "URL_HOST_INVALID",
    "https://169.254.169.254/latest/meta-data/": "URL_HOST_INVALID",
    "https://\u2460\u2461\u2466.0.0.1/": "URL_HOST_INVALID",
    "https://127\u30020\u30020\u30021/": "URL_HOST_INVALID",
    "https://[::1]/": "URL_HOST_INVALID",
    "https://[::ffff:10.0.0.1]/": "URL_HOST_INVALID",
    "https://[fe80::1%25eth0]/": "URL_HOST_INVALID",
    "https://8.8.8.8/": "URL_HOST_INVALID",
    "https://hooks.example.com%2f@127.0.0.1/": "URL_CREDENTIALS",
    "https://hooks.example.com%00.evil.example/": "URL_HOST_INVALID",
    "https://-a.example.com/": "URL_HOST_INVALID",
    "https://a..example.com/": "URL_HOST_INVALID",
}


@pytest.mark.parametrize("url", REFUSED)
def test_any_other_url_is_refused_with_a_reason(url: str) -> None:
    with pytest.raises(NotAWebhookUrl) as raised:
        RULES.read(url)
    assert raised.value.reason == REFUSED[url]


PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001::1"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_connected_to(address: str) -> None:
    assert RULES.allows(ip_address(address))


NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "100.100.100.200"),
    *(
        "127.0.0.1",
        "127.255.255.254",
        "169.254.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.1",
        "172.31.255.255",
    ),
    *("192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::808:808", "64:ff9b:1::a00:1", "100::1", "2001::1", "2001:10::1", "2001:20::1", "2001:db8::1"),
    *("2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1"),
    *("ff02::1", "ff0e::1"),
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not RULES.allows(ip_address(address))


PRIVATE_4 = [each for each in NOT_PUBLIC if "." in each and ":" not in each]


@pytest.mark.parametrize("inner", PRIVATE_4)
def test_no_ipv6_address_hides_an_ipv4_address_that_is_not_public(inner: str) -> None:
    number = int(ip_address(inner))
    high, low = number >> 16, number & 0xFFFF
    forms = [
        f"::{inner}",
        f"::ffff:{inner}",
        f"::ffff:0:{inner}",
        f"64:ff9b::{inner}",
        f"64:ff9b:1::{inner}",
        f"2002:{high:x}:{low:x}::1",
        f"2001:0:{high:x}:{low:x}::1",
        f"2001::{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}",
        f"2a00:1450::5efe:{inner}",
        f"2a00:1450::200:5efe:{inner}",
        f"fe80::5efe:{inner}",
    ]
    assert [form for form in forms if RULES.allows(ip_address(form))] == []


@pytest.mark.parametrize("rules", [RULES, LOCAL], ids=["production", "development"])
@pytest.mark.parametrize("address", [*PRIVATE_4, *PUBLIC[:4]])
def test_no_spelling_of_an_ipv4_address_is_a_host(address: str, rules: WebhookRules) -> None:
    number = int(ip_address(address))
    first, *_, last = parts = [int(part) for part in address.split(".")]
    spellings = [
        address,
        f"{address}.",
        str(number),
        hex(number),
        f"0{number:o}",
        ".".join(map(hex, parts)),
        ".".join(f"0{part:o}" for part in parts),
        f"{first}.{number & 0xFFFFFF}",
        f"{first}.{parts[1]}.{number & 0xFFFF}",
        f"0x{first:X}.{parts[1]}.{parts[2]}.{last}",
        f"{address}%2e",
        f"[{address}]",
        f"[::ffff:{address}]",
        "\uff10".join(address.split("0")) if "0" in address else f"\uff11.{address}",
        "\u3002".join(address.split(".")),
    ]
    taken = []
    for spelling in spellings:
        with suppress(NotAWebhookUrl):
            taken.append(rules.read(f"https://{spelling}/"))
    assert taken == []


def test_an_operator_refuses_further_networks() -> None:
    rules = WebhookRules(frozenset({443}), refused=[ip_network("93.184.215.0/24")])
    assert [rules.allows(ip_address(each)) for each in ("93.184.215.14", "93.184.216.14")] == [False, True]


def test_for_development_this_machine_is_allowed_and_no_other_that_is_not_public() -> None:
    assert str(LOCAL.read("http://localhost:9000/x")) == "http://localhost:9000/x"
    allowed = [each for each in NOT_PUBLIC if LOCAL.allows(ip_address(each))]
    assert allowed == ["127.0.0.1", "127.255.255.254", "::1"]


def settings(**given: object) -> NotificationSettings:
    keys = dict.fromkeys(("mesh_key", "cursor_key", "seal_key", "unsubscribe_key", "address_key"), KEY)
    database = "postgresql+psycopg://a@/b?host=/run"
    return NotificationSettings.model_validate({"database_url": database, **keys, **given})


def test_production_refuses_webhooks_to_its_own_machine() -> None:
    assert settings(webhook_local=True).webhook_rules.local
    with pytest.raises(ValidationError, match="is for development"):
        settings(environment="production", webhook_local=True)


@pytest.mark.parametrize(
    "given", [{"webhook_ports": "443,"}, {"webhook_ports": "0"}, {"webhook_refused_networks": "x"}]
)
def test_a_setting_that_means_nothing_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        settings(**given)


def test_ports_and_networks_are_those_of_the_settings() -> None:
    rules = settings(webhook_ports="443,9443", webhook_refused_networks="198.51.100.0/24, 2a00::/16").webhook_rules
    assert rules.read("https://hooks.example.com:9443/").port == 9443
    assert not rules.allows(ip_address("2a00::1"))
