#!/usr/bin/env bash
# The main job over JSON: sign up, ask for a story, watch it being written.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source examples/curl/lib.sh
EMAIL="reader-$RANDOM$RANDOM@example.com"

echo "== sign up as $EMAIL, and prove the address with the mailed code"
REGISTRATION=$(post "$EDGE/v1/registrations" -d "{\"email\": \"$EMAIL\", \"password\": \"correct horse battery staple\"}" | field registration_id)
CODE=$(mailed_code "$EMAIL" 6)
TOKEN=$(post "$EDGE/v1/registrations/$REGISTRATION:complete" -d "{\"code\": \"$CODE\", \"device_name\": \"my shell\"}" | field access_token)
AUTHORIZATION="authorization: Bearer $TOKEN"

echo "== ask for a story; request_id makes a repeated request safe"
STORY=$(post "$EDGE/v1/stories" -H "$AUTHORIZATION" \
  -d '{"theme": "a letter", "preferences": ["lighthouses"], "length": "STORY_LENGTH_SHORT", "request_id": "first-try"}' | field id)

echo "== watch it as it is written, by server-sent events"
curl -sSN -H "$AUTHORIZATION" "$EDGE/v1/stories/$STORY:watch"

echo "== what is stored, and the notification that it is done"
curl -sS -H "$AUTHORIZATION" "$EDGE/v1/stories/$STORY"; echo
curl -sS -H "$AUTHORIZATION" "$EDGE/v1/notifications?page_size=1"; echo
