"""Signed addresses are those that botocore makes, for every style of server and every key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.session import Session

from kit.data.presigning import Presigner

AT = datetime(2026, 3, 4, 5, 6, 7, 890, tzinfo=UTC)
FIXED = datetime(2026, 3, 4, 5, 6, 7)  # noqa: DTZ001 - botocore's clock has no zone

ENDPOINTS = {
    "http://127.0.0.1:8333": "path",
    "https://minio.example.com": "path",
    "https://minio.example.com:443": "path",
    "http://[::1]:9000": "path",
    "https://s3.eu-central-1.amazonaws.com": "virtual",
    "http://localhost.localstack.cloud:4566": "virtual",
}
KEYS = [
    "a",
    "files/0198c2f0-aaaa/original",
    "a b+c&d=e?f#g%20h",
    "grüße/日本/~.-_/*'()!",
    "//double//slashes//",
    "a/../b",
]


def presigner(endpoint: str, addressing: str) -> Presigner:
    return Presigner(
        endpoint,
        "storymesh-tests",
        region="eu-central-1",
        access_key="AKIDEXAMPLE",
        secret_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        virtual=addressing == "virtual",
    )


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


@pytest.mark.parametrize(("endpoint", "addressing"), ENDPOINTS.items())
def test_an_address_is_the_one_that_botocore_signs(endpoint: str, addressing: str, session: Session) -> None:
    ours = presigner(endpoint, addressing)
    client: Any = session.create_client(
        "s3",
        region_name="eu-central-1",
        endpoint_url=endpoint,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        config=Config(
            signature_version="s3v4", s3={"addressing_style": "virtual" if addressing == "virtual" else "path"}
        ),
    )
    query = {
        "response-content-disposition": "attachment; filename*=UTF-8''a%20b;c",
        "response-content-type": "text/x y",
    }
    with patch("botocore.auth.get_current_datetime", return_value=FIXED):
        for key in KEYS:
            params = {
                "Bucket": "storymesh-tests",
                "Key": key,
                "ResponseContentDisposition": query["response-content-disposition"],
                "ResponseContentType": query["response-content-type"],
            }
            theirs = client.generate_presigned_url("get_object", Params=params, ExpiresIn=600)
            signed = ours.sign("GET", key, at=AT, valid_for=timedelta(minutes=10), query=query)
            assert sorted(signed.url.split("?")[1].split("&")) == sorted(theirs.split("?")[1].split("&")), key
            # Botocore writes the default port out; it is left out of what is signed by both.
            assert signed.url.split("?")[0] == theirs.split("?")[0].replace(":443/", "/"), key


def test_headers_are_signed_as_botocore_signs_them() -> None:
    headers = {
        "Content-Length": "12",
        "Content-Type": "text/plain;  charset=utf-8 ",
        "If-None-Match": "*",
        "x-amz-checksum-sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    }
    request = AWSRequest("PUT", "http://127.0.0.1:8333/storymesh-tests/a%20b", headers=headers)
    credentials = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    with patch("botocore.auth.get_current_datetime", return_value=FIXED):
        botocore.auth.S3SigV4QueryAuth(credentials, "s3", "eu-central-1", expires=900).add_auth(request)
    signed = presigner("http://127.0.0.1:8333", "path").sign(
        "PUT", "a b", at=AT, valid_for=timedelta(minutes=15), headers=headers
    )
    assert sorted(signed.url.split("&")[1:]) == sorted(str(request.url).split("&")[1:])
    assert signed.headers == headers
    assert signed.expires_at == AT.replace(microsecond=0) + timedelta(minutes=15)


def test_the_day_s_key_changes_with_the_day() -> None:
    ours = presigner("http://127.0.0.1:8333", "path")
    days = [AT, AT + timedelta(days=1), AT]
    first, second, again = [ours.sign("GET", "a", at=day, valid_for=timedelta(minutes=1)).url for day in days]
    fresh = presigner("http://127.0.0.1:8333", "path").sign("GET", "a", at=days[1], valid_for=timedelta(minutes=1)).url
    assert first == again != second == fresh


@pytest.mark.parametrize("valid_for", [timedelta(0), timedelta(milliseconds=900), timedelta(days=7, seconds=1)])
def test_a_time_that_the_protocol_does_not_know_is_refused(valid_for: timedelta) -> None:
    with pytest.raises(ValueError, match="one second to seven days"):
        presigner("http://127.0.0.1:8333", "path").sign("GET", "a", at=AT, valid_for=valid_for)


def test_neither_the_address_nor_the_secret_is_shown_by_a_repr() -> None:
    signed = presigner("http://127.0.0.1:8333", "path").sign("GET", "a", at=AT, valid_for=timedelta(minutes=1))
    assert "Signature" not in repr(signed)
