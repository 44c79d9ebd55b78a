#!/bin/sh
# Runs Mosquitto on the folder that `edgewise-server init --broker mosquitto` wrote, where the server cannot signal it
# (another container, another machine): waits for the certificates, and sends SIGHUP when a file has changed.
set -eu

FILES="${EDGEWISE_BROKER_FILES:-/var/lib/edgewise/broker}"
LOOK_S="${EDGEWISE_BROKER_LOOK_S:-2}"

ready() {
  for name in mosquitto.conf acl ca.pem broker.pem crl.pem; do
    [ -s "$FILES/$name" ] || return 1
  done
}

state() { cat "$FILES/acl" "$FILES/ca.pem" "$FILES/broker.pem" "$FILES/crl.pem" 2>/dev/null | sha256sum; }

pid=""
trap '[ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null; [ -n "$pid" ] || exit 0' TERM INT

if ! ready; then
  echo "waiting for $FILES: the certificates come with the key ceremony (edgewise trust install)" >&2
  until ready; do sleep "$LOOK_S"; done
fi

seen="$(state)"
mosquitto -c "$FILES/mosquitto.conf" &
pid=$!
while kill -0 "$pid" 2>/dev/null; do
  sleep "$LOOK_S" &
  wait $! || true
  now="$(state)"
  if [ "$now" != "$seen" ]; then
    echo "the files have changed; Mosquitto reads them again" >&2
    kill -HUP "$pid" && seen="$now"
  fi
done
status=0
wait "$pid" || status=$?
exit "$status"
