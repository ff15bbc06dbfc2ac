#!/bin/sh
# Follows the transitions, one JSON object a line, and goes on where it stopped: ./follow-feed.sh place.txt
set -eu
url=${BATON_URL:-http://127.0.0.1:8080}
place=$1
[ -s "$place" ] || echo 0 > "$place"

while true; do
  # The stream (SSE) ends when Baton stops or the connection breaks; Last-Event-ID goes on where it was.
  curl --silent --no-buffer "$url/v1/transitions/stream" -H "Last-Event-ID: $(cat "$place")" \
    -H "Authorization: Bearer $BATON_API_KEY" |
    while IFS= read -r line; do
      case $line in
        id:*) id=${line#id: } ;;
        data:*)
          printf '%s\n' "${line#data: }" # the work
          printf '%s\n' "$id" > "$place" ;;
      esac
    done
  sleep 1
done
