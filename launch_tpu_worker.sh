#!/usr/bin/env bash
# What a worker of a TPU slice does for launch_tpu.sh, which calls this over ssh. It lies in the shipped code.
#
#   ~/vlm_jax/code/COMMIT   the shipped tree; current is a link to the one in use
#   ~/vlm_jax/env/HASH      an environment, made once for a pyproject.toml
#   ~/vlm_jax/runs/NAME     of a run: lock (held while it runs), pid, exit (the exit code), stopped (by wish), log (of the last start)
#   ~/gs/BUCKET             a bucket, mounted
#
# What launch_tpu.sh is to read stands in lines that begin with @worker or @log and the name of the worker.

set -uo pipefail

root=$HOME/vlm_jax
code=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
host=$(hostname)

report() { printf '@worker %s %s\n' "$host" "$*"; }

# The environment follows from what is to be installed; several commits with the same dependencies share one.
environment() { printf '%s/env/%s' "$root" "$(sha256sum "$code/pyproject.toml" | cut -c -12)"; }

# A Python that vlm_jax runs on; where the machine has none, uv brings one.
make_environment() {
  local path=$1 candidate
  for candidate in python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      "$candidate" -m venv "$path"
      return
    fi
  done
  python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python 3.12 "$path"
}

setup() {
  local path
  path=$(environment)
  if [ ! -e "$path/ready" ]; then
    rm -rf "$path"
    # The package itself runs from the shipped tree: a copy in the environment would outlive its commit.
    { make_environment "$path" && "$path/bin/python" -m pip install --quiet "${code}[tpu]" &&
      "$path/bin/python" -m pip uninstall --quiet --yes vlm_jax; } 2>&1 | sed "s/^/$host: /"
    [ "${PIPESTATUS[0]}" = 0 ] || { report setup failed && return; }
    touch "$path/ready"
    report setup new environment
  else
    report setup kept environment
  fi
}

# Mounts a bucket where it is not mounted yet. No metadata is cached, since every worker writes to the same folders.
mount_bucket() {
  local folder=$HOME/gs/$1
  mountpoint -q "$folder" && return
  if ! command -v gcsfuse >/dev/null; then
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null &&
      sudo apt-get -o DPkg::Lock::Timeout=300 -qq update &&
      sudo apt-get -o DPkg::Lock::Timeout=300 -qq install -y gcsfuse || return
  fi
  mkdir -p "$folder" && gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 "$1" "$folder"
}

# start RUN WORKDIR RECIPE [--field value ...]: does nothing where the run is running.
start() {
  local run=$root/runs/$1 bucket arguments=()
  mkdir -p "$run"
  exec 9>>"$run/lock"
  flock -n 9 || { report running && return; }
  while read -r bucket; do
    # Without the lock, which the process that serves the mount would keep.
    mount_bucket "$bucket" >"$run/mount" 2>&1 9>&- || { sed "s/^/$host: /" "$run/mount" && report start failed && return; }
  done < <(printf '%s\n' "${@:2}" | grep -o 'gs://[^/]*' | sed 's|gs://||' | sort -u)
  [ -x "$(environment)/bin/python" ] || { echo "$host: no environment; launch_tpu.sh setup makes it" && report start failed && return; }
  arguments=("${@//gs:\/\//$HOME/gs/}")
  rm -f "$run/exit" "$run/pid" "$run/stopped"
  # A session of its own, so that the end of this ssh ends nothing; it keeps the lock for as long as it lives.
  setsid nohup bash "${BASH_SOURCE[0]}" attend "${arguments[@]}" </dev/null >/dev/null 2>&1 &
  report started
}

# Runs the training, and stays until it has ended.
attend() {
  local run=$root/runs/$1 workdir=$2 log code_of_exit child copier
  log=log.$(date -u +%Y%m%d-%H%M%S).$$
  ln -sfn "$log" "$run/log"
  trap : TERM # when the machine is taken away the training saves, and this waits for it
  cd "$code" || exit
  set -- "${@:3}" --workdir "$workdir"
  printf '%s\n' "$host, $(date -u +%FT%TZ), ${code##*/}" "LIBTPU_INIT_ARGS='${LIBTPU_INIT_ARGS:-}'" "python -m vlm_jax.train $*" >"$run/log"
  "$(environment)/bin/python" -u -m vlm_jax.train "$@" >>"$run/log" 2>&1 9>&- &
  child=$!
  echo "$child" >"$run/pid"
  # A copy in the workdir is all that is left of a log when the machine is taken away.
  while sleep 60; do keep_log "$run" "$workdir"; done 9>&- &
  copier=$!
  wait "$child"
  code_of_exit=$?
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code_of_exit=$?
  done
  kill "$copier"
  keep_log "$run" "$workdir"
  echo "$code_of_exit" >"$run/exit.part" && mv "$run/exit.part" "$run/exit"
  kill -KILL -- -$$ # whatever the training has left behind, which would keep the chips
}

keep_log() {
  mkdir -p "$2/logs" && cp "$1/log" "$2/logs/$host-$(readlink "$1/log" | cut -d . -f 2-).log"
}

state_of() {
  local run=$root/runs/$1
  if [ ! -e "$run/lock" ]; then
    echo none
  elif ! flock -n "$run/lock" true; then
    echo running
  elif [ -e "$run/stopped" ]; then
    echo stopped
  elif [ -e "$run/exit" ]; then
    echo "exit $(cat "$run/exit")"
  else
    echo lost
  fi
}

case ${1:-} in
  setup) setup ;;
  start) start "${@:2}" ;;
  attend) attend "${@:2}" ;;
  status) report "$(state_of "$2")" ;;
  stop)
    if [ "$(state_of "$2")" = running ]; then
      touch "$root/runs/$2/stopped"
      until [ -s "$root/runs/$2/pid" ] || [ "$(state_of "$2")" != running ]; do sleep 0.1; done # one that has just been started
      kill -TERM "$(cat "$root/runs/$2/pid")"
    fi
    report "$(state_of "$2")"
    ;;
  kill)
    [ "$(state_of "$2")" != running ] || kill -KILL "$(cat "$root/runs/$2/pid")"
    report killed
    ;;
  log) tail -c "+$(($3 + 1))" "$root/runs/$2/log" ;;
  logs) tail -c 4000000 "$root/runs/$2/log" | sed "s/^/@log $host /" ;;
  *) echo "usage: launch_tpu_worker.sh setup | start | status | stop | kill | log | logs; launch_tpu.sh calls it" >&2 && exit 2 ;;
esac
