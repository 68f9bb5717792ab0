# Sourced by the examples: the mesh's address, and three functions on top of curl and sed.
EDGE="http://${STORYMESH_EDGE:-127.0.0.1:8080}"
MAIL="${MAIL:-.local/mail}"

# `return`, because a shell that these lines are pasted into must not end.
curl -sS -o /dev/null "$EDGE/health" || { echo "No mesh answers at $EDGE. Start one with \`make up\`, or name its edge in STORYMESH_EDGE (HOST:PORT)." >&2; return 1; }

# POST with a JSON body; more arguments go to curl.
post() { curl -sS -H 'content-type: application/json' "$@"; }

# The first string of this name in the JSON on standard input.
field() { sed -nE "s/.*\"$1\":\"([^\"]*)\".*/\1/p"; }

# Waits up to 30 s for a code with this number of digits mailed to an address, and prints the latest.
mailed_code() { # ADDRESS DIGITS
  local code
  for _ in $(seq 150); do
    code=$(grep -ohE "code is [0-9]{$2}" $(grep -ls "^To: $1" "$MAIL"/*.eml) /dev/null | tail -n 1 | grep -oE "[0-9]{$2}") && break
    sleep 0.2
  done
  [ -n "$code" ] || { echo "no code for $1 came to $MAIL" >&2; return 1; }
  echo "$code"
}
