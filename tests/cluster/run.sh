#!/usr/bin/env bash
# run.sh COMMAND…: installs SLURM where it is missing (root, apt) and runs the command, test_slurm.py.
# Where it cannot be installed, says why and ends with 0.
set -euo pipefail

skip() { echo "skipped: the tests on SLURM need $*"; exit 0; }

[ "$(id -u)" = 0 ] || skip "root, to start a SLURM of their own"
missing=
for program in slurmctld slurmd munged pgrep; do command -v $program >/dev/null || missing=1; done
if [ "$missing" ]; then
  command -v apt-get >/dev/null || skip "slurmctld, slurmd and munged, and there is no apt-get to install them"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge procps; } >/dev/null 2>&1 ||
    skip "slurm-wlm and munge, which apt-get cannot install here"
fi
exec "$@"
