#!/usr/bin/env bash
# Smoke tests of a deployment: the encoder, the router and the store.
# Every test runs. The exit status is 1 if one fails; a skipped test is not a failure.
set -uo pipefail

VISION_ENCODER_URL=${VISION_ENCODER_URL:-http://localhost:8001}
VISION_ENCODER_URL=${VISION_ENCODER_URL%/}
ROUTER_URL=${ROUTER_URL:-http://localhost:9102}
ROUTER_URL=${ROUTER_URL%/}
QDRANT_URL=${QDRANT_URL:-}
QDRANT_URL=${QDRANT_URL%/}
IMAGE_URL=${IMAGE_URL:-}
IMAGE_HOST=${IMAGE_HOST:-127.0.0.1}
IMAGE_PORT=${IMAGE_PORT:-8765}
SECONDS_EACH=60
SKIPPED=77 # exit status of a skipped test
export no_proxy="localhost,127.0.0.1,${no_proxy:-${NO_PROXY:-}}"
LINE="======================================"

usage() {
  cat <<'HELP'
Usage: ./test-vision-encoder.sh        (needs bash, curl and jq)

Six tests: health, model info, text embedding, image embedding from a URL, router, Qdrant.

  VISION_ENCODER_URL  the encoder                     (http://localhost:8001)
  ROUTER_URL          the router                      (http://localhost:9102)
  QDRANT_URL          a Qdrant server; without it the script asks the encoder about its store
  API_KEY             bearer token for the encoder and the router; the first of several keys
  QDRANT_API_KEY      key of the Qdrant server
  IMAGE_URL           a picture on the web for the fourth test. Without it the script serves a
                      picture (with python3), and the encoder must be allowed to fetch it:
                        ALLOW_IMAGE_URLS=true IMAGE_URL_ALLOWED_HOSTS=127.0.0.1
                        IMAGE_URL_ALLOWED_PORTS=8765
                      The test is skipped if the encoder fetches no URLs, as by default.
  IMAGE_HOST          this machine's name for the encoder (127.0.0.1; for a container of
                      docker-compose.yml: host.docker.internal)
  IMAGE_PORT          the port of the served picture  (8765)
HELP
}

case ${1:-} in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) echo "unknown argument $1: only --help is allowed; variables set the targets" >&2; usage >&2; exit 2 ;;
esac

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# Each test runs in a subshell, which these functions end.
pass() { printf '✅ PASS: %s\n\n' "$1"; exit 0; }
skip() { printf '⏭ SKIP: %s\n   To run it: %s\n\n' "$1" "$2"; exit "$SKIPPED"; }
fail() { # MESSAGE HINT
  printf '❌ FAIL: %s\n   Look at: %s\n\n' "$1" "$2" >&2
  exit 1
}

for tool in curl jq; do
  command -v "$tool" >/dev/null || fail "$tool is not installed" "apt-get install $tool"
done

umask 077 # pass keys in files, because other users can read the arguments of processes
[ -z "${API_KEY:-}" ] || echo "Authorization: Bearer ${API_KEY%%,*}" >"$work/key"
[ -z "${QDRANT_API_KEY:-}" ] || echo "api-key: $QDRANT_API_KEY" >"$work/qdrant-key"
touch "$work/key" "$work/qdrant-key"

# ask FILE-OF-HEADERS URL [CURL ARGUMENTS]: print the answer, or a problem and fail unless it is 2xx
ask() {
  local headers=$1 url=$2 status
  shift 2
  : >"$work/answer"
  status=$(curl -sS --connect-timeout 10 --max-time "$SECONDS_EACH" -H "@$headers" -o "$work/answer" \
    -w '%{http_code}' "$@" "$url" 2>"$work/problem") || {
    echo "$url: $(cat "$work/problem")"
    return 1
  }
  if [[ $status != 2?? ]]; then
    echo "$url answered $status: $(head -c 400 "$work/answer")"
    return 1
  fi
  cat "$work/answer"
}
ask_json() { ask "$1" "$2" -H "Content-Type: application/json" -d "$3"; }
encoder() { ask "$work/key" "$VISION_ENCODER_URL$1"; }
json() { [ -n "$1" ] && jq -e "$2" <<<"$1" >/dev/null 2>&1; } # an older jq accepts empty input
# show JSON: print it, with embeddings shortened
show() {
  printf '%s' "$1" | jq '(.. | .embedding? | arrays) |= (.[:3] + ["… \(length) in all"])' 2>/dev/null ||
    printf '%s\n' "$1"
}

# try NUMBER NAME FUNCTION: run a test and count its result
passed=0 failed=0 skipped=0
try() {
  echo "Test $1 of 6: $2"
  ("$3")
  case $? in
    0) passed=$((passed + 1)) ;;
    "$SKIPPED") skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
}

health() {
  answer=$(encoder /health) ||
    fail "$answer" "whether the encoder is running (make serve, or docker compose ps), its log, and API_KEY"
  show "$answer"
  json "$answer" '.status == "healthy"' || fail "the encoder is not healthy" "the encoder's log"
  pass "the encoder is healthy"
}

model_info() {
  answer=$(encoder /info) || fail "$answer" "the encoder's log"
  show "$answer"
  json "$answer" '.model_name != "" and .embedding_dim > 0' ||
    fail "/info names no model" "whether VISION_ENCODER_URL is the URL of a vision encoder"
  printf '%s' "$answer" >"$work/info"
  pass "the model is $(jq -r '"\(.model_name)/\(.pretrained), \(.embedding_dim) dimensions"' <<<"$answer")"
}

text() {
  answer=$(ask_json "$work/key" "$VISION_ENCODER_URL/embed/text" \
    '{"text": "a red circle", "normalize": true}') ||
    fail "$answer" "the encoder's log and API_KEY"
  show "$answer"
  json "$answer" "$embedding" || fail "this is not $described" "the encoder's log"
  pass "a text has $described"
}

image_url() {
  url=${IMAGE_URL:-http://$IMAGE_HOST:$IMAGE_PORT/circle.png}
  start="ALLOW_IMAGE_URLS=true"
  [ -n "$IMAGE_URL" ] ||
    start+=" IMAGE_URL_ALLOWED_HOSTS=$IMAGE_HOST IMAGE_URL_ALLOWED_PORTS=$IMAGE_PORT"
  hint="whether the encoder runs with $start"
  answer=$(ask_image "$url")
  status=$?
  # Only an encoder that fetches no URL at all names ALLOW_IMAGE_URLS in its answer.
  off='.code == "url_refused" and (.error | contains("ALLOW_IMAGE_URLS"))'
  if json "$(cat "$work/answer")" "$off"; then
    skip "the encoder fetches no image URLs (url_refused): ALLOW_IMAGE_URLS is off" \
      "start the encoder with $start"
  fi
  if [ -z "$IMAGE_URL" ]; then # after the skip, which needs neither python3 nor the port
    serve_picture
    hint+="; or set IMAGE_URL"
    answer=$(ask_image "$url")
    status=$?
  fi
  [ "$status" = 0 ] || fail "$answer" "$hint"
  show "$answer"
  json "$answer" "$embedding" || fail "this is not $described" "the encoder's log"
  pass "the picture at $url has an embedding"
}

ask_image() {
  ask_json "$work/key" "$VISION_ENCODER_URL/embed/image" \
    "$(jq -n --arg url "$1" '{image_url: $url, normalize: true}')"
}

serve_picture() {
  command -v python3 >/dev/null ||
    fail "python3 is not installed, which serves the picture" "IMAGE_URL, which can name a picture instead"
  mkdir "$work/www"
  base64 -d >"$work/www/circle.png" <<'PNG'
iVBORw0KGgoAAAANSUhEUgAAADAAAAAwAQMAAABtzGvEAAAABlBMVEX/////AADrWueTAAAAaUlE
QVR42p3PwQ3CMBSD4S8vSO2REboJYfOMwAgdIccKVQ0HhCI4IIEvln/7Yv7W1MDlILOmVEOiYOq9
CTOzeK7DmZOwEAMW0kggq0jv8JtlCtfPrtJHWjmExj7gxibcuQmd+no0/v2mB9mQFkejAk+3AAAA
AElFTkSuQmCC
PNG
  address=127.0.0.1
  [ "$IMAGE_HOST" = 127.0.0.1 ] || address=0.0.0.0
  python3 -m http.server --bind "$address" --directory "$work/www" "$IMAGE_PORT" \
    >"$work/www.log" 2>&1 &
  picture_server=$!
  trap 'kill "$picture_server" 2>/dev/null' EXIT # of this test's subshell
  for _ in {1..100}; do
    kill -0 "$picture_server" 2>/dev/null ||
      fail "cannot serve the picture: $(tail -n 1 "$work/www.log")" "IMAGE_PORT"
    curl -sf --max-time 5 -o "$work/seen" "http://127.0.0.1:$IMAGE_PORT/circle.png" && break
    sleep 0.1
  done
  cmp -s "$work/seen" "$work/www/circle.png" ||
    fail "another program answers at port $IMAGE_PORT" "IMAGE_PORT"
}

router() {
  body='{"mode": "vision_embed", "payload": {"operation": "embed_text", "text": "a red circle"}}'
  answer=$(ask_json "$work/key" "$ROUTER_URL/route" "$body") ||
    fail "$answer" "whether the router is running (python -m router_client), and its VISION_ENCODER_URL"
  show "$answer"
  json "$answer" '.ok == true and .provider_id == "vision_encoder"' ||
    fail "the router did not embed: $(jq -r '.error // "no reason given"' <<<"$answer" 2>/dev/null)" \
      "$ROUTER_URL/providers, which shows the health of each provider"
  json "$answer" ".data | $embedding" ||
    fail "the router's answer is not $described" "the router's VISION_ENCODER_URL"
  pass "the router reaches the encoder"
}

qdrant() {
  answer=$(ask "$work/qdrant-key" "$QDRANT_URL/readyz") ||
    fail "$answer" "whether Qdrant is running, and docker compose logs qdrant"
  echo "$answer"
  answer=$(ask "$work/qdrant-key" "$QDRANT_URL/collections") ||
    fail "$answer" "QDRANT_API_KEY and Qdrant's log"
  show "$answer"
  json "$answer" '.status == "ok"' || fail "$QDRANT_URL is not a Qdrant server" "QDRANT_URL"
  pass "Qdrant is ready"
}

store() {
  [ -f "$work/info" ] || fail "test 2 did not pass, so the collection is unknown" "test 2, or set QDRANT_URL"
  collection=$(jq -r '.collection // empty' "$work/info")
  [ -n "$collection" ] ||
    fail "search is off in the encoder" "QDRANT_ENABLED=true at the encoder, or set QDRANT_URL"
  answer=$(encoder "/collections/$collection") ||
    fail "$answer" "the encoder's QDRANT_HOST or QDRANT_PATH, and its log"
  show "$answer"
  json "$answer" '.points >= 0' || fail "the answer has no number of points" "the encoder's log"
  pass "the store answers, $(jq -r '"\(.points) pictures in \(.collection)"' <<<"$answer")"
}

printf '%s\nVision Encoder Smoke Tests\n%s\n' "$LINE" "$LINE"
printf 'encoder: %s\nrouter:  %s\nqdrant:  %s\n\n' "$VISION_ENCODER_URL" "$ROUTER_URL" \
  "${QDRANT_URL:-through the encoder}"

try 1 health health
try 2 "model info" model_info
# true for an embedding with norm 1 and the dimension of /info, if test 2 passed
embedding='(.embedding | length) == .dimension and
  ((.embedding | map(. * .) | add) - 1 | . < 0.001 and . > -0.001)'
described="a normalized embedding"
if [ -f "$work/info" ]; then
  dimension=$(jq .embedding_dim "$work/info")
  embedding+=" and .dimension == $dimension"
  described+=" of $dimension dimensions"
fi
try 3 "text embedding" text
try 4 "image embedding from a URL" image_url
try 5 router router
try 6 Qdrant "$([ -n "$QDRANT_URL" ] && echo qdrant || echo store)"

summary="$passed passed"
[ "$failed" = 0 ] || summary+=", $failed failed"
[ "$skipped" = 0 ] || summary+=", $skipped skipped"
verdict=PASSED
[ "$failed" = 0 ] || verdict=FAILED
printf '%s\nVision Encoder Smoke Tests %s\n%s\n%s\n' "$LINE" "$verdict" "$summary" "$LINE"
[ "$failed" = 0 ]
