#!/usr/bin/env bash
# Make sure that nginx is there: the tests put it, with TLS and passwords, in front of OpenSearch.
set -euo pipefail
PATH=$PATH:/usr/sbin
if command -v nginx >/dev/null; then exit 0; fi
if ((EUID)); then
  echo "Not installed: nginx. Install it as root: apt-get install nginx-light" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends nginx-light >/dev/null
