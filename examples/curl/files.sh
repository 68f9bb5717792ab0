#!/usr/bin/env bash
# Declare a file, send its bytes to the object store by a signed request, have them checked, and fetch them again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source examples/curl/lib.sh
EMAIL="reader-$RANDOM$RANDOM@example.com"
FILE="LICENSE"

REGISTRATION=$(post "$EDGE/v1/registrations" -d "{\"email\": \"$EMAIL\", \"password\": \"correct horse battery staple\"}" | field registration_id)
TOKEN=$(post "$EDGE/v1/registrations/$REGISTRATION:complete" -d "{\"code\": \"$(mailed_code "$EMAIL" 6)\"}" | field access_token)
AUTHORIZATION="authorization: Bearer $TOKEN"

echo "== declare it: purpose, name, size, media type and SHA-256"
SHA256=$(python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$FILE")
CREATED=$(post "$EDGE/v1/files" -H "$AUTHORIZATION" -d "{\"purpose\": \"FILE_PURPOSE_DOCUMENT\", \"name\": \"licence.txt\",
  \"size\": $(wc -c < "$FILE"), \"media_type\": \"text/plain\", \"sha256\": \"$SHA256\", \"request_id\": \"upload-1\"}")
ID=$(sed -E 's/.*"file":\{"id":"([^"]*)".*/\1/' <<< "$CREATED")
echo "file $ID, $(field state <<< "$CREATED")"

echo "== send the bytes to the store itself, with the signed headers; a second time it refuses them"
for _ in first second; do
  curl -sS -o /dev/null -w '%{http_code}\n' -T "$FILE" -H 'content-type: text/plain' -H 'if-none-match: *' \
    -H "x-amz-checksum-sha256: $(field x-amz-checksum-sha256 <<< "$CREATED")" "$(field url <<< "$CREATED")"
done

echo "== have them checked, and watch"
post "$EDGE/v1/files/$ID:complete" -H "$AUTHORIZATION" -d '{}' | field state; echo
curl -sSN -H "$AUTHORIZATION" "$EDGE/v1/files/$ID:watch" | field state

echo "== fetch a part of them by a signed request of ten minutes"
URL=$(post "$EDGE/v1/files/$ID:download" -H "$AUTHORIZATION" -d '{}' | field url)
curl -sS -D - -r 0-99 "$URL" | grep -aiE '^(HTTP|content-(disposition|range))'

echo "== delete it"
curl -sS -X DELETE -H "$AUTHORIZATION" "$EDGE/v1/files/$ID"; echo
curl -sS -H "$AUTHORIZATION" "$EDGE/v1/files/$ID" | field reason; echo
