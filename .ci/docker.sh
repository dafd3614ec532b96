#!/usr/bin/env bash
# Make sure that a Docker engine answers and that debootstrap is there (`oskit node image build` needs both).
# Does nothing where that is so already. Otherwise it installs Debian's packages and starts dockerd by hand,
# because a build machine often has no init system.
set -euo pipefail

log=${DOCKERD_LOG:-/var/log/dockerd.log}

answers() { docker info >/dev/null 2>&1; }

missing=()
for pair in docker:docker.io dockerd:docker.io iptables:iptables debootstrap:debootstrap; do
  # An engine that answers needs no dockerd and no iptables here: it may run elsewhere.
  if answers && [[ $pair != debootstrap:* ]]; then continue; fi
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ((${#missing[@]})); then
  if ((EUID)); then
    echo "Not installed: ${missing[*]}. Install them as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # Newer Debian releases have the client in a package of its own.
  if ! command -v docker >/dev/null && apt-cache show docker-cli >/dev/null 2>&1; then missing+=(docker-cli); fi
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if answers; then
  echo "A Docker engine answers."
  exit 0
fi
if ((EUID)); then
  echo "No Docker engine answers, and only root can start one." >&2
  exit 1
fi

echo "Starting dockerd, log in $log"
# Left behind by an engine that was killed, it would keep the new one from starting.
if [[ -f /var/run/docker.pid ]] && ! kill -0 "$(cat /var/run/docker.pid)" 2>/dev/null; then
  rm -f /var/run/docker.pid
fi
setsid dockerd >"$log" 2>&1 </dev/null &
for _ in $(seq 60); do
  sleep 1
  if answers; then
    echo "A Docker engine answers."
    exit 0
  fi
done
echo "dockerd did not start within a minute:" >&2
tail -n 20 "$log" >&2
exit 1
