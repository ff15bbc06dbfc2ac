#!/bin/sh
# Verifies a webhook with openssl: ./verify-webhook.sh ID TIMESTAMP SIGNATURES < body
# The three are the headers webhook-id, webhook-timestamp and webhook-signature; exit 0: it is from Baton.
# To see what is signed and how; a receiver compares in constant time, as those in Python and JavaScript do.
set -eu
key=$(printf '%s' "${BATON_WEBHOOK_SECRET#whsec_}" | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \n')
age=$(($(date +%s) - $2))
[ "${age#-}" -le 300 ] || { echo "too old, or from the future" >&2; exit 1; }

digest=$({ printf '%s.%s.' "$1" "$2"; cat; } |
  openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | openssl base64 -A)
for signature in $3; do # several while one secret replaces another
  [ "$signature" != "v1,$digest" ] || exit 0
done
echo "no signature is right" >&2
exit 1
