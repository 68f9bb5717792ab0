"""Transcodes JSON and SSE to gRPC, by the contract's `google.api.http` annotations."""

from __future__ import annotations

from pathlib import Path

from edge.config import Config, extension, typed
from edge.settings import Sizes

FILTER = "envoy.filters.http.grpc_json_transcoder"
_MESSAGE = "extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder"


def transcoder(descriptors: Path, services: tuple[str, ...], sizes: Sizes) -> Config:
    """The transcoder filter. It refuses a path, query parameter or body that does not fit the contract."""
    return extension(
        FILTER,
        _MESSAGE,
        proto_descriptor=str(descriptors),
        services=list(services),
        print_options={
            "preserve_proto_field_names": True,
            "always_print_primitive_fields": True,
            "stream_sse_style_delimited": True,
        },
        # By default an unknown path passes on and ends as 503, and a misspelt parameter is silently dropped.
        request_validation_options={
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        convert_grpc_status=True,
        max_request_body_size=sizes.request_body_bytes,
        max_response_body_size=sizes.response_body_bytes,
    )


def without_transcoding() -> Config:
    """Per-route configuration that switches the transcoder off, for paths that Envoy answers itself."""
    return {FILTER: typed(_MESSAGE, proto_descriptor_bin="", services=[])}


def is_compressed() -> Config:
    """Matches a request with a content coding other than `identity`, because the transcoder cannot decompress."""
    return {
        "name": "content-encoding",
        "string_match": {"safe_regex": {"regex": "(?i)[ \t]*(identity)?[ \t]*"}},
        "treat_missing_header_as_empty": True,
        "invert_match": True,
    }
