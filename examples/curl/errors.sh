#!/usr/bin/env bash
# Refusals: every error is a google.rpc.Status in JSON with a permanent reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source examples/curl/lib.sh

echo "== 400: each invalid field is named"
post "$EDGE/v1/registrations" -d '{"email": "nobody", "username": "1", "preferences": ["a", "a"]}'; echo

echo "== 401: no access token"
curl -sS "$EDGE/v1/stories"; echo

echo "== 404: no such path"
curl -sS "$EDGE/v1/nothing"; echo
