#!/usr/bin/env bash
# A real SLURM of one node, for tests: munged, slurmctld and slurmd as root, without systemd and accounting.
#   slurm.sh up DIR    starts it; all it writes lies under DIR; then: export SLURM_CONF=DIR/slurm.conf
#   slurm.sh down DIR  cancels its jobs and stops it
# PORT (16817) is slurmctld's, slurmd has the next; the node offers CPUS (8), however few there are.
set -euo pipefail

what=$1 dir=$(realpath -m "$2")
export SLURM_CONF=$dir/slurm.conf
port=${PORT:-16817} host=$(hostname -s)

until_true() { # until_true SECONDS COMMAND…
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "slurm.sh: gave up waiting for: $*; see $dir/log" >&2; return 1; }
    sleep 0.2
  done
}
gone() { [ ! -e "/proc/$1/exe" ]; } # a zombie has no executable

steps() { # the processes of jobs; one whose end slurmctld did not hear of would try to tell it for ever
  local pid
  for pid in $(pgrep -x slurmstepd); do
    ! grep -qzxF "SLURM_CONF=$SLURM_CONF" "/proc/$pid/environ" 2>/dev/null || echo "$pid"
  done
}
no_steps() { [ -z "$(steps)" ]; }

up() {
  mkdir -p "$dir"/{state,spool,log,run}
  (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
  cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
# a requeued job waits cred_expire seconds before it starts again: 120 without this, 5 at least
AuthInfo=socket=$dir/run/munge,cred_expire=5
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
KillWait=10
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=${CPUS:-8} RealMemory=65536
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
END
  munged --key-file="$dir/munge.key" --socket="$dir/run/munge" --seed-file="$dir/run/munge.seed" \
    --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" --force
  until_true 30 munge -n -S "$dir/run/munge"
  slurmctld
  until_true 30 sh -c 'scontrol ping | grep UP'
  slurmd -N "$host"
  until_true 30 sh -c 'sinfo -h -o %t | grep -x idle'
}

down() {
  squeue -h -o %A | sort -u | xargs -r scancel || true
  until_true 30 sh -c '[ -z "$(squeue -h)" ]' || true
  until_true 15 no_steps || true
  for daemon in slurmctld slurmd munged; do
    [ -e "$dir/run/$daemon.pid" ] || continue
    pid=$(cat "$dir/run/$daemon.pid")
    kill "$pid" 2>/dev/null || continue
    until_true 20 gone "$pid" || kill -KILL "$pid"
  done
  steps | xargs -r kill -KILL
}

"$what"
