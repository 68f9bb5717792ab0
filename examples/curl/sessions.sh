#!/usr/bin/env bash
# One person, several devices: sign in by password and by mailed code, rotate tokens, end sessions, change and delete the account.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source examples/curl/lib.sh
EMAIL="reader-$RANDOM$RANDOM@example.com"
PASSWORD='correct horse battery staple'

echo "== sign up: the first session belongs to this device"
REGISTRATION=$(post "$EDGE/v1/registrations" -d "{\"email\": \"$EMAIL\", \"password\": \"$PASSWORD\"}" | field registration_id)
REFRESH=$(post "$EDGE/v1/registrations/$REGISTRATION:complete" -d "{\"code\": \"$(mailed_code "$EMAIL" 6)\", \"device_name\": \"desk\"}" | field refresh_token)

echo "== refresh: a new access token, and a new refresh token in place of the one just spent"
REFRESH=$(post "$EDGE/v1/sessions:refresh" -d "{\"refresh_token\": \"$REFRESH\"}" | field refresh_token)
echo "the new access token ends at $(post "$EDGE/v1/sessions:refresh" -d "{\"refresh_token\": \"$REFRESH\"}" | field access_token_expire_time)"

echo "== a second device signs in by password"
post "$EDGE/v1/sessions" -d "{\"login\": \"$EMAIL\", \"password\": \"$PASSWORD\", \"device_name\": \"phone\"}" | field email; echo

echo "== a third one by a mailed code"
CHALLENGE=$(post "$EDGE/v1/sessions:startCode" -d "{\"email\": \"$EMAIL\"}" | field challenge_id)
TOKEN=$(post "$EDGE/v1/sessions:completeCode" \
  -d "{\"challenge_id\": \"$CHALLENGE\", \"code\": \"$(mailed_code "$EMAIL" 8)\", \"device_name\": \"tablet\"}" | field access_token)
AUTHORIZATION="authorization: Bearer $TOKEN"
curl -sS -H "$AUTHORIZATION" "$EDGE/v1/sessions"; echo

echo "== end all other sessions"
post "$EDGE/v1/sessions:revokeOthers" -H "$AUTHORIZATION" -d '{}'; echo

echo "== change what the account says"
curl -sS -X PATCH "$EDGE/v1/account" -H 'content-type: application/json' -H "$AUTHORIZATION" -d '{"first_name": "Ada", "preferences": []}'; echo

echo "== delete it: nothing about it is left in any service"
post "$EDGE/v1/account:delete" -H "$AUTHORIZATION" -d "{\"password\": \"$PASSWORD\"}"; echo
