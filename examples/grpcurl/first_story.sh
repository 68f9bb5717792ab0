#!/usr/bin/env bash
# The main job over native gRPC. Needs grpcurl: https://github.com/fullstorydev/grpcurl.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH="$PATH:$PWD/.venv/bin" # where make grpcurl builds it
command -v grpcurl > /dev/null || { echo "grpcurl is not installed: brew install grpcurl, or make grpcurl, which builds it with Go." >&2; exit 1; }
source examples/curl/lib.sh
EDGE="${STORYMESH_EDGE:-127.0.0.1:8080}"
EMAIL="reader-$RANDOM$RANDOM@example.com"

# The edge does not serve reflection, so the contract is read from files.
call() { grpcurl -plaintext -protoset gen/descriptors.binpb -emit-defaults "$@"; }
# grpcurl prints lowerCamelCase, `"name": "value"`.
value() { sed -nE "s/.*\"$1\": \"([^\"]*)\".*/\1/p" | head -n 1; }

echo "== sign up as $EMAIL"
REGISTRATION=$(call -d "{\"email\": \"$EMAIL\", \"password\": \"correct horse battery staple\"}" \
  "$EDGE" storymesh.auth.v1.RegistrationService/CreateRegistration | value registrationId)
TOKEN=$(call -d "{\"registration_id\": \"$REGISTRATION\", \"code\": \"$(mailed_code "$EMAIL" 6)\"}" \
  "$EDGE" storymesh.auth.v1.RegistrationService/CompleteRegistration | value accessToken)

echo "== ask for a story"
STORY=$(call -H "authorization: Bearer $TOKEN" -d '{"theme": "a letter", "length": "STORY_LENGTH_SHORT"}' \
  "$EDGE" storymesh.story.v1.StoryService/CreateStory | value id)

echo "== watch it: a stream of messages"
call -H "authorization: Bearer $TOKEN" -d "{\"story_id\": \"$STORY\"}" "$EDGE" storymesh.story.v1.StoryService/WatchStory

echo "== a refusal: its details are decoded from the contract"
call -d '{"login": "nobody@example.com", "password": "a guess"}' "$EDGE" storymesh.auth.v1.SessionService/CreateSession || echo "exit code $?"
