#!/bin/bash
# What the official image's entrypoint does, as far as it is there to be done: environment variables whose
# names have a dot become settings. There is no security plugin, so its settings are left out.
set -euo pipefail
umask 0002

if [[ "$(id -u)" == 0 ]]; then
  echo "OpenSearch cannot run as root. Please start your container as another user." >&2
  exit 1
fi

if [[ $# -gt 0 && "$1" != opensearch && "$1" != opensearchwrapper && "$1" != -* ]]; then
  exec "$@"
fi
if [[ "${1:-}" == opensearch || "${1:-}" == opensearchwrapper ]]; then
  shift
fi

settings=()
while IFS='=' read -r -d '' name value; do
  if [[ "$name" =~ ^[a-z0-9_]+\.[a-z0-9_.]+$ && "$name" != plugins.security.* && -n "$value" ]]; then
    settings+=("-E$name=$value")
  fi
done < <(env -0)

exec bin/opensearch "${settings[@]}" "$@"
