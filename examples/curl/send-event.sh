#!/bin/sh
# Sends one lead event: ./send-event.sh ada@example.com
set -eu
url=${BATON_URL:-http://127.0.0.1:8080}
id=example-$(date +%s)-$$ # the same at each try: Baton takes an event once

# curl tries again after 429 and 5xx, honours Retry-After, and after a refused connection.
curl --silent --show-error --fail-with-body --retry 8 --retry-connrefused "$url/v1/events" \
  -H "Authorization: Bearer $BATON_API_KEY" -H 'Content-Type: application/cloudevents+json' \
  -d '{"specversion": "1.0", "id": "'"$id"'", "source": "/examples", "type": "demo.requested",
       "data": {"email": "'"$1"'", "company": "Example"}}'
echo
