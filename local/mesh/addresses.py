"""The addresses of a running mesh, as `status` and `up` show them."""

from collections.abc import Collection

from deploy import buckets
from local.layout import Layout
from local.mesh.components import envoy, mailsink, postgres, redis, s3
from mesh.catalog import manifests


def of(layout: Layout, only: Collection[str] = ()) -> dict[str, str]:
    """Addresses by name; if `only` is not empty, those of the components in it."""
    found: dict[str, str] = {}
    if not only or envoy.NAME in only:
        found |= {
            "edge": f"{layout.edge_url} (JSON, SSE, gRPC and gRPC-Web on one port)",
            "docs": f"{layout.edge_url}/docs",
            "openapi": f"{layout.edge_url}/openapi.yaml",
            "envoy admin": f"http://{layout.address('envoy-admin')}",
        }
    if not only or mailsink.NAME in only:
        found["mail"] = f"{layout.mail}/*.eml"
    if postgres.NAME in only:
        found["postgres"] = f"postgresql://{layout.address(postgres.NAME)} (passwords in {layout.secrets})"
    if redis.NAME in only:
        found["redis"] = f"redis://{layout.address(redis.NAME)} (passwords in {layout.secrets})"
    if s3.NAME in only or (not only and buckets.holders(manifests())):
        found["s3"] = f"{s3.Store(layout).endpoint} (keys in {layout.secrets})"
    found["logs"] = f"{layout.logs}/*.log"
    return found
