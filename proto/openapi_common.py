"""The fixed parts of the OpenAPI document: its description, headers, errors, and the edge's own answers."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

DURATION: Json = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$", "examples": ["1.5s"]}

INFO: Json = {
    "title": "Storymesh",
    "version": "1",
    "description": "Sign up, ask for a personalised story, and watch it being written. The same methods are served as gRPC "
    "and gRPC-Web on the same port. Every error is a google.rpc.Status whose first detail names a permanent reason, save where "
    "pages are answered. OPTIONS answers 204 with the header allow at every path, HEAD works for documents, and a request body "
    "must not be compressed.",
    "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
}

HEADERS: Json = {
    "x-request-id": {"description": "Names this request in the logs.", "schema": {"type": "string", "format": "uuid"}},
    "x-trace-id": {
        "description": "Names the trace that all services took part in.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "retry-after": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}},
    "ratelimit": {
        "description": "How many calls are left, and in how many seconds there are more (draft-ietf-httpapi-ratelimit-headers-10).",
        "schema": {"type": "string"},
    },
    "ratelimit-policy": {"description": "The limit that is nearest, by the same draft.", "schema": {"type": "string"}},
    "allow": {"description": "The methods that the path takes.", "schema": {"type": "string"}},
    "accept-encoding": {
        "description": "When the body was compressed: how it is taken instead.",
        "schema": {"type": "string"},
    },
    "www-authenticate": {"description": "RFC 6750, section 3.", "schema": {"type": "string"}},
}


OF_EVERY_CALL = ("x-request-id", "x-trace-id", "ratelimit", "ratelimit-policy")

LAST_EVENT_ID: Json = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last event received, which is its resume_token; goes before the query's resume_token.",
    "schema": {"type": "string", "maxLength": 512},
}
EVENT_SOURCE = (
    "The id of each event is its resume_token. A browser's own EventSource cannot send an access token, because it sets no "
    "headers; use one that is built on fetch, such as the package eventsource, which also sends Last-Event-ID when it reconnects."
)
ENDED: Json = {
    "description": "The stream has ended and the caller has read its end: there is nothing to come back for.",
    "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in OF_EVERY_CALL},
}
REDIRECTED: Json = {
    "description": "For a browser, whose Accept does not name application/json: its URL is in `Location`.",
    "headers": {
        **ENDED["headers"],
        "Location": {"required": True, "description": "The URL.", "schema": {"type": "string", "format": "uri"}},
    },
}

PAGE: Json = {"text/html": {"schema": {"type": "string", "description": "A page for people."}}}
ANY_BODY: Json = {
    "required": False,
    "description": "Of any media type, such as a form.",
    "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
}


def _error(description: str, *headers: str) -> Json:
    return {
        "description": description,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in ("x-request-id", "x-trace-id", *headers)
        },
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}},
    }


RESPONSES: Json = {
    "400": _error("A field, the query or the body is not valid; BadRequest names each field at fault."),
    "401": _error("No valid credential.", "www-authenticate"),
    "403": _error("Not for this caller."),
    "404": _error("There is no such thing, or it is another's."),
    "409": _error("It conflicts with what is there."),
    "405": _error("The path does not take this method.", "allow"),
    "413": _error("The request body is too large."),
    "415": _error("The request body is not application/json, or is compressed.", "accept-encoding"),
    "429": _error(
        "Too many calls; RetryInfo and retry-after say when to try again.",
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
    ),
    "503": _error("Something the call needs is unavailable; try again.", "retry-after"),
    "504": _error("No answer in time."),
    "default": _error("Any other error."),
}

ERROR_SCHEMAS: Json = {
    "Status": {
        "type": "object",
        "description": "A google.rpc.Status.",
        "required": ["code", "message", "details"],
        "properties": {
            "code": {"type": "integer", "description": "A google.rpc.Code."},
            "message": {"type": "string", "description": "For developers, in English."},
            "details": {
                "type": "array",
                "items": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/ErrorInfo"},
                        {"$ref": "#/components/schemas/BadRequest"},
                        {"$ref": "#/components/schemas/RetryInfo"},
                        {"type": "object", "required": ["@type"], "properties": {"@type": {"type": "string"}}},
                    ]
                },
            },
        },
    },
    "ErrorInfo": {
        "type": "object",
        "description": "Why, for programs.",
        "required": ["@type", "reason", "domain"],
        "properties": {
            "@type": {"const": "type.googleapis.com/google.rpc.ErrorInfo"},
            "reason": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]+[A-Z0-9]$", "description": "Permanent."},
            "domain": {"type": "string", "description": "Always storymesh for errors of this mesh."},
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
    "BadRequest": {
        "type": "object",
        "description": "The fields at fault.",
        "required": ["@type", "field_violations"],
        "properties": {
            "@type": {"const": "type.googleapis.com/google.rpc.BadRequest"},
            "field_violations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "field": {"type": "string", "description": "Its path in the request, such as preferences[2]."},
                        "description": {"type": "string"},
                        "reason": {"type": "string"},
                    },
                },
            },
        },
    },
    "RetryInfo": {
        "type": "object",
        "description": "When to try again.",
        "required": ["@type", "retry_delay"],
        "properties": {
            "@type": {"const": "type.googleapis.com/google.rpc.RetryInfo"},
            "retry_delay": DURATION,
        },
    },
}

HEALTH: Json = {
    "get": {
        "operationId": "Health",
        "tags": ["Edge"],
        "summary": "Whether the edge is alive",
        "description": "Whether the edge is alive. Says nothing about the services behind it.",
        "security": [],
        "responses": {
            "200": {
                "description": "It is.",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["status"],
                            "properties": {"status": {"const": "SERVING"}},
                        }
                    }
                },
            },
            "405": {"$ref": "#/components/responses/405"},
            "default": {"$ref": "#/components/responses/default"},
        },
    }
}
