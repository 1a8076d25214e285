#!/bin/sh
# Make the secrets that compose.yaml names, each 32 random bytes; one that stands already is kept.
#
# The folder is open to its owner alone. The files in it are readable, since Compose mounts them as they are and the
# containers run as other users than whoever made them.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
for name in postgres_password mlflow_password mlflow_session_key ray_token studies_password; do
  if [ ! -e "secrets/$name" ]; then
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"secrets/$name.partial"
    chmod 0444 "secrets/$name.partial"
    mv "secrets/$name.partial" "secrets/$name"
    echo "made infra/docker/secrets/$name"
  fi
done
