"""Fetches the public keys of access tokens from auth, for every service but auth itself."""

from __future__ import annotations

from grpc.aio import Channel
from storymesh.auth.v1 import key_service_pb2 as pb
from storymesh.auth.v1.key_service_pb2_grpc import KeyServiceStub

from .tokens import FetchKeys, JsonWebKey


def fetch_from(auth: Channel) -> FetchKeys:
    stub = KeyServiceStub(auth)

    async def fetch() -> list[JsonWebKey]:
        response = await stub.GetJwks(pb.GetJwksRequest(), timeout=3)
        return [{field.name: value for field, value in key.ListFields()} for key in response.keys]

    return fetch
