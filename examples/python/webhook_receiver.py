"""Receives the messages of a webhook, and takes those alone that are signed with its secret.

Usage: WEBHOOK_SECRET=whsec_... python examples/python/webhook_receiver.py [PORT]

It speaks plain HTTP, for a mesh on this machine that runs with STORYMESH_WEBHOOK_LOCAL=true, or behind a proxy that ends TLS.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer

MOST_BYTES = 100_000


def is_ours(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    """Whether the message is signed with the webhook's secret (whsec_...), and of the last five minutes."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    signed = any(hmac.compare_digest(expected, each) for each in headers["webhook-signature"].split())
    return signed and abs(time.time() - int(headers["webhook-timestamp"])) < 300


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), MOST_BYTES))
        headers = {name.lower(): value for name, value in self.headers.items()}
        signed = {"webhook-id", "webhook-timestamp", "webhook-signature"} <= headers.keys()
        ours = signed and is_ours(headers, body, os.environ["WEBHOOK_SECRET"])
        self.send_response(204 if ours else 401)
        self.end_headers()
        if ours:
            message = json.loads(body)
            print(message["id"], message["type"], message["data"]["title"], flush=True)


if __name__ == "__main__":
    if not os.environ.get("WEBHOOK_SECRET"):
        sys.exit("set WEBHOOK_SECRET to what CreateWebhook answered: whsec_...")
    HTTPServer(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 9000), Receiver).serve_forever()
