#!/usr/bin/env bash
# Trains on Cloud TPU: makes the machines, ships the code, runs, follows, resumes after preemptions, and deletes.
# This is what your machine does; launch_tpu_worker.sh, which travels with the code, is what each worker does.
# docs/pods.md goes through it step by step; --dry-run shows every command of the cloud and runs none.

set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# As in vlm_jax/errors.py.
readonly DONE=0 FAULT=1 BAD_INPUT=2 PREEMPTED=3 INFRASTRUCTURE=4

usage() {
  cat <<'TEXT'
usage: ./launch_tpu.sh COMMAND [--option value ...] [-- RECIPE --field value ...]

commands (COMMAND --help has an example of each)
  create   ask for the machines, and wait until they are there
  setup    ship the committed code to every worker, and make its environment
  run      start the training on every worker and follow it; on a running one: follow it again
  logs     fetch the log of every worker
  status   say what the machines and the workers do
  stop     let the run save and end, on every worker
  delete   delete the machines; nothing is billed after it
  all      create, setup, run; after a preemption again, in the same workdir; delete at the end

options
  --name NAME             of the machines and of the run (vlm)
  --project, --zone       of Google Cloud; default: those of gcloud's configuration
  --type TYPE             of one slice: v4-128, v5litepod-256, v5p-128, v6e-256 ...
  --slices N              slices that train as one (1)
  --capacity KIND         on-demand, spot or reserved (on-demand)
  --valid-until DURATION  after which a request that is still waiting fails, such as 6h; default: never
  --runtime-version NAME  default: the one of the generation
  --service-account MAIL  the workers act as; default: the project's Compute Engine account
  --workdir gs://B/PATH   of the run; several workers need one that they share
  --flags-profile NAME    compiler flags of configs/tpu_flags.txt; default: none
  --attempts N            of `all` in a row that end within half an hour of training (8)
  --backoff SECONDS       before the second of them; doubles, up to 15 minutes (30)
  --poll SECONDS          between two looks at the cloud and the workers (30)
  --grace SECONDS         that workers have to end once one has failed, or after `stop` (180)
  --keep                  `all` does not delete the machines at the end
  --dry-run               print every command and run none

Every gs://B/PATH among the arguments of the recipe is read and written through a mount of the bucket B on each worker.
exit codes: 0 done, 1 fault in code, 2 bad input or configuration, 3 stopped and saved, 4 infrastructure
TEXT
}

example() {
  local cloud="--name b16 --project my-project --zone us-west4-a" workdir="--workdir gs://my-bucket/runs/b16"
  case $1 in
    create) echo "./launch_tpu.sh create $cloud --type v5litepod-256 --capacity spot --valid-until 12h" ;;
    run) echo "./launch_tpu.sh run $cloud --type v5litepod-256 $workdir -- configs/siglip.py --batch-size 32768" ;;
    all) echo "./launch_tpu.sh all $cloud --type v5litepod-256 --capacity spot $workdir -- configs/siglip.py --batch-size 32768" ;;
    *) echo "./launch_tpu.sh $1 $cloud" ;;
  esac
}

say() { printf '%s launch: %s\n' "$(date -u +%H:%M:%S)" "$*" >&2; }

# Ends with exit code $1 and the words.
fail() {
  local code=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$code"
}

# ------------------------------------------------------------------------------------------------ command line

name=vlm project='' zone='' type='' slices=1 capacity=on-demand valid_until='' runtime_version='' service_account=''
workdir='' flags_profile=none attempts=8 backoff=30 poll=30 grace=180 keep='' dry_run='' arguments=()

parse() {
  command=${1:-}
  case $command in
    create | setup | run | logs | status | stop | delete | all) shift ;;
    '' | -h | --help) usage && exit "$DONE" ;;
    *) fail "$BAD_INPUT" "no command is called '$command'; ./launch_tpu.sh --help lists them" ;;
  esac
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift && arguments=("$@") && break ;;
      -h | --help)
        usage | sed -n "s/^  $command  */$command: /p"
        printf 'example:\n  %s\n\n' "$(example "$command")"
        usage | sed -n '/^options/,$p'
        exit "$DONE"
        ;;
      --keep) keep=yes && shift ;;
      --dry-run) dry_run=yes && shift ;;
      --name | --project | --zone | --type | --slices | --capacity | --valid-until | --runtime-version | --service-account | \
        --workdir | --flags-profile | --attempts | --backoff | --poll | --grace)
        [ $# -gt 1 ] || fail "$BAD_INPUT" "$1: no value is given"
        local field=${1#--}
        printf -v "${field//-/_}" %s "$2"
        shift 2
        ;;
      *) fail "$BAD_INPUT" "$1: no such option; ./launch_tpu.sh $command --help lists them, and fields of the recipe stand after --" ;;
    esac
  done
}

check() {
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "$BAD_INPUT" "--name '$name': lower-case letters, digits and -"
  [[ $slices =~ ^[1-9][0-9]*$ ]] || fail "$BAD_INPUT" "--slices '$slices': must be a number from 1"
  [[ $attempts =~ ^[1-9][0-9]*$ ]] || fail "$BAD_INPUT" "--attempts '$attempts': must be a number from 1"
  [[ $backoff =~ ^[0-9]+$ && $grace =~ ^[0-9]+$ ]] || fail "$BAD_INPUT" "--backoff '$backoff', --grace '$grace': must be whole seconds"
  [[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "$BAD_INPUT" "--poll '$poll': must be seconds"
  case $capacity in
    on-demand | spot | reserved) ;;
    *) fail "$BAD_INPUT" "--capacity '$capacity': must be on-demand, spot or reserved" ;;
  esac
  case $command in create | run | all) check_type ;; esac
  case $command in run | all) check_run ;; esac
  check_cloud
}

# Sets generation and workers from the type of a slice: v4 and v5p count cores, two of a chip; v5e and v6e count chips.
check_type() {
  local size=${type##*-} cores alone
  case $type in
    v4-* | v5p-*) generation=${type%-*} cores=2 alone=4 ;;
    v5litepod-*) generation=v5e cores=1 alone=8 ;;
    v6e-*) generation=v6e cores=1 alone=8 ;;
    '') fail "$BAD_INPUT" "no --type is given, such as --type v5litepod-16" ;;
    *) fail "$BAD_INPUT" "--type '$type': no such TPU; write v4-N, v5litepod-N, v5p-N or v6e-N" ;;
  esac
  [[ $size =~ ^[1-9][0-9]*$ ]] || fail "$BAD_INPUT" "--type '$type': it ends in no number of chips or cores"
  workers=$((size / cores <= alone ? 1 : size / cores / 4))
  if [ -z "$runtime_version" ]; then
    case $generation in
      v4) runtime_version=tpu-ubuntu2204-base ;;
      v5e) runtime_version=v2-alpha-tpuv5-lite ;;
      v5p) runtime_version=v2-alpha-tpuv5 ;;
      v6e) runtime_version=v2-alpha-tpuv6e ;;
    esac
  fi
}

check_run() {
  [ ${#arguments[@]} -gt 0 ] || fail "$BAD_INPUT" "no recipe is named; it stands after --, such as: -- configs/siglip.py --steps 1000"
  [[ ${arguments[0]} == *.py ]] || fail "$BAD_INPUT" "recipe ${arguments[0]}: the first argument after -- is a Python file"
  git -C "$here" cat-file -e "HEAD:${arguments[0]}" 2>/dev/null ||
    fail "$BAD_INPUT" "recipe ${arguments[0]}: not in the commit that is shipped; commit it"
  [[ " ${arguments[*]} " != *" --workdir"[\ =]* ]] || fail "$BAD_INPUT" "--workdir stands before the --, where the launcher sees it"
  [ -n "$workdir" ] || fail "$BAD_INPUT" "no --workdir is given; write --workdir gs://BUCKET/PATH"
  if [[ $workdir != gs://?*/?* ]]; then
    [ $((workers * slices)) = 1 ] || fail "$BAD_INPUT" "--workdir '$workdir': the $((workers * slices)) workers of $slices x $type must" \
      "share it; write gs://BUCKET/PATH"
    [ "$command" != all ] || fail "$BAD_INPUT" "--workdir '$workdir': it would be lost with the machine; write gs://BUCKET/PATH"
    say "--workdir $workdir is on the worker's own disk, and is lost when the machine is deleted"
  fi
  libtpu_init_args=''
  [ "$flags_profile" = none ] && return
  libtpu_init_args=$(awk -v profile="$flags_profile" -v generation="$generation" \
    '$1 == profile && index("," $2 ",", "," generation ",") { printf "%s--%s", separator, $3; separator = " " }' \
    "$here/configs/tpu_flags.txt")
  [ -n "$libtpu_init_args" ] || fail "$BAD_INPUT" "--flags-profile '$flags_profile': configs/tpu_flags.txt has none for $generation; it" \
    "has $(awk '/^[a-z]/ { print $1 " (" $2 ")" }' "$here/configs/tpu_flags.txt" | sort -u | paste -sd ' ' -)"
}

check_cloud() {
  if [ -n "$dry_run" ]; then
    [ -n "$project" ] && [ -n "$zone" ] || fail "$BAD_INPUT" "--dry-run asks no cloud: name --project and --zone"
    return
  fi
  command -v gcloud >/dev/null || fail "$BAD_INPUT" "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
  [ -n "$(gcloud auth list --filter=status:ACTIVE '--format=value(account)' 2>/dev/null)" ] ||
    fail "$BAD_INPUT" "gcloud is not logged in: gcloud auth login"
  [ -n "$project" ] || project=$(gcloud config get-value project 2>/dev/null)
  [ -n "$project" ] || fail "$BAD_INPUT" "no --project is given, and gcloud has none: gcloud config set project PROJECT"
  [ -n "$zone" ] || zone=$(gcloud config get-value compute/zone 2>/dev/null)
  [ -n "$zone" ] || fail "$BAD_INPUT" "no --zone is given, and gcloud has none: gcloud config set compute/zone ZONE"
}

# ------------------------------------------------------------------------------------------------ the cloud

# A command of queued resources; with --dry-run it is printed.
queued() {
  local verb=$1
  shift
  set -- gcloud compute tpus queued-resources "$verb" "$@" "--zone=$zone" "--project=$project"
  if [ -z "$dry_run" ]; then
    "$@"
    return
  fi
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[-A-Za-z0-9_./:=,@+]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  echo "${line# }"
}

# What the queued resource is, such as ACTIVE; NONE where there is none, UNKNOWN where the cloud does not say.
state() {
  local answer
  if answer=$(queued describe "$name" '--format=value(state.state)' 2>"$scratch/describe"); then
    echo "${answer:-UNKNOWN}"
  elif grep -qiE 'not.found' "$scratch/describe"; then
    echo NONE
  else
    echo UNKNOWN
  fi
}

billed=''
# Nothing that is billed is left without a word.
on_exit() {
  local code=$? now
  exec 2>&3 # wherever the words went when this began
  if [ -n "$billed" ] && [ -z "$dry_run" ]; then
    now=$(state)
    [ "$now" = NONE ] || printf '\nSTILL THERE, and billed while it is ACTIVE: queued resource %s, %s. To delete it:\n  %s\n' \
      "$name" "$now" "gcloud compute tpus queued-resources delete $name --zone=$zone --project=$project --force --quiet" >&2
  fi
  [ -z "$scratch" ] || rm -rf "$scratch"
  exit "$code"
}

# Errors of the cloud that pass: no machine is free, or a service does not answer. A quota that is too small does not pass.
passing() {
  [[ $1 != *[Qq]uota* ]] && grep -qiE 'capacity|unavailable|internal|deadline|timed out|try again|stockout|aborted' <<<"$1"
}

request() {
  local answer node=(--node-id="$name")
  [ "$slices" = 1 ] || node=(--node-count="$slices" --node-prefix="$name")
  local flags=(--accelerator-type="$type" --runtime-version="$runtime_version" --async --quiet)
  [ "$capacity" = on-demand ] || flags+=("--$capacity")
  [ -z "$valid_until" ] || flags+=(--valid-until-duration="$valid_until")
  [ -z "$service_account" ] || flags+=(--service-account="$service_account" --scopes=https://www.googleapis.com/auth/cloud-platform)
  say "asking for $slices x $type, $capacity, in $zone"
  if [ -n "$dry_run" ]; then
    queued create "$name" "${node[@]}" "${flags[@]}"
    return
  fi
  billed=yes # an answer that is lost may be a yes
  if ! answer=$(queued create "$name" "${node[@]}" "${flags[@]}" 2>&1); then
    printf '%s\n' "$answer" >&2
    passing "$answer" && return "$INFRASTRUCTURE"
    refused "$answer"
  fi
}

# Why asking again would end the same way.
refused() {
  [[ $1 != *[Qq]uota* ]] || fail "$BAD_INPUT" "the quota of $project in $zone does not allow $slices x $type ($capacity):" \
    "ask for more at https://console.cloud.google.com/iam-admin/quotas (service tpu.googleapis.com), or take a smaller --type"
  fail "$BAD_INPUT" "the cloud refuses the request; see above"
}

# Until the machines are there. Returns 4 when the request has failed in a way that passes.
provision() {
  local now before='' error silent=0
  while :; do
    if [ -n "$dry_run" ]; then now=ACTIVE; else now=$(state); fi
    [ "$now" = "$before" ] || say "queued resource $name: $now"
    before=$now
    case $now in
      ACTIVE)
        billed=yes
        [ -z "$dry_run" ] || { request && queued describe "$name" '--format=value(state.state)'; }
        return
        ;;
      NONE) request || return ;;
      FAILED | SUSPENDED | SUSPENDING | PREEMPTED)
        billed=yes
        error=$(queued describe "$name" '--format=value(state.failedData.error.message)' 2>/dev/null)
        [ -z "$error" ] || printf '%s\n' "$error" >&2
        erase || exit "$INFRASTRUCTURE"
        if [ "$now" = FAILED ]; then
          [[ $error != *[Qq]uota* ]] || refused "$error"
          return "$INFRASTRUCTURE"
        fi
        ;;
      UNKNOWN)
        silent=$((silent + 1))
        ! grep -E 'PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT' "$scratch/describe" >&2 ||
          fail "$BAD_INPUT" "the cloud refuses to say; see above"
        [ "$silent" -lt 10 ] || { cat "$scratch/describe" >&2 && return "$INFRASTRUCTURE"; }
        sleep "$poll"
        ;;
      *) silent=0 && sleep "$poll" ;;
    esac
  done
}

# Deletes the queued resource with its machines. Says so, loudly, where it cannot.
erase() {
  local try
  billed=yes
  for try in 1 2 3 4 5; do
    say "deleting queued resource $name"
    if queued delete "$name" --force --quiet; then
      billed=''
      return
    fi
    [ "$(state)" = NONE ] && billed='' && return
    sleep "$poll"
  done
  say "queued resource $name could not be deleted after $try attempts"
  return "$INFRASTRUCTURE"
}

# ------------------------------------------------------------------------------------------------ the workers

on_workers() { queued ssh "$name" --node=all --worker=all --batch-size=all --quiet --command="$1"; }

# A command of launch_tpu_worker.sh on every worker.
worker() {
  local words
  printf -v words ' %q' "$@"
  on_workers "bash vlm_jax/current/launch_tpu_worker.sh$words"
}

pack() {
  local changes
  commit=$(git -C "$here" rev-parse --short=12 HEAD) || fail "$BAD_INPUT" "$here is no git checkout; what is shipped is a commit"
  changes=$(git -C "$here" status --porcelain)
  if [ -n "$changes" ]; then
    say "the working tree differs from commit $commit, which is what is shipped. These $(wc -l <<<"$changes") changes stay here:"
    head -n 10 <<<"$changes" >&2
  fi
  archive=vlm_jax-$commit.tar.gz
  if [ -n "$dry_run" ]; then
    echo "git archive --format=tar.gz --output=$archive HEAD"
  else
    git -C "$here" archive --format=tar.gz --output="$scratch/$archive" HEAD || exit "$FAULT"
  fi
}

ship() {
  local answer tree="vlm_jax/code/$commit"
  say "shipping commit $commit to every worker"
  queued scp "${scratch:+$scratch/}$archive" "$name:" --node=all --worker=all --batch-size=all --quiet || return "$INFRASTRUCTURE"
  answer=$(on_workers "mkdir -p $tree && tar -xzf $archive -C $tree && ln -sfn code/$commit vlm_jax/current && \
bash $tree/launch_tpu_worker.sh setup")
  local code=$?
  printf '%s\n' "$answer"
  if [[ $answer == *"@worker "*" setup failed"* ]]; then
    say "the environment could not be made on every worker; see above"
    return "$BAD_INPUT"
  fi
  [ "$code" = 0 ] || return "$INFRASTRUCTURE"
}

start() {
  local words answer environment=''
  [ -z "$libtpu_init_args" ] || printf -v environment 'LIBTPU_INIT_ARGS=%q ' "$libtpu_init_args"
  printf -v words ' %q' "$name" "$workdir" "${arguments[@]}"
  answer=$(on_workers "${environment}bash vlm_jax/current/launch_tpu_worker.sh start$words")
  local code=$?
  printf '%s\n' "$answer"
  if [[ $answer == *"@worker "*" start failed"* ]]; then
    say "the run could not be started on every worker; see above"
    return "$BAD_INPUT"
  fi
  if [ "$code" = 127 ]; then
    say "there is no code on the workers: ./launch_tpu.sh setup ships it"
    return "$BAD_INPUT"
  fi
  [ "$code" = 0 ] || return "$INFRASTRUCTURE"
  [ -z "$dry_run" ] || return "$DONE"
  started=$(grep -cE '^@worker .* (started|running)$' <<<"$answer")
  say "$started workers run"
  [ "$started" -gt 0 ] || return "$INFRASTRUCTURE"
  [ "$started" = $((workers * slices)) ] || say "$slices x $type should have $((workers * slices)) of them"
}

# New lines of the log of worker 0.
tail_first() {
  queued ssh "$name" --node=0 --worker=0 --quiet --command="bash vlm_jax/current/launch_tpu_worker.sh log $name $offset" >"$scratch/new" \
    2>/dev/null || return
  cat "$scratch/new"
  offset=$((offset + $(wc -c <"$scratch/new")))
}

# Follows the run to its end: 0 done, 1 or 2 a fault that a retry would meet again, 3 stopped by `stop`, 4 what another attempt may survive.
follow() {
  local answer silent=0 failed_at='' ended
  offset=0
  if [ -n "$dry_run" ]; then
    queued ssh "$name" --node=0 --worker=0 --quiet --command="bash vlm_jax/current/launch_tpu_worker.sh log $name $offset"
    worker status "$name"
    return "$DONE"
  fi
  while :; do
    sleep "$poll"
    tail_first
    if answer=$(worker status "$name" 2>"$scratch/ssh"); then
      silent=0
    else
      silent=$((silent + 1))
      case $(state) in
        ACTIVE | UNKNOWN) ;;
        *) say "the machines are gone: $(state)" && return "$INFRASTRUCTURE" ;;
      esac
      [ "$silent" = 1 ] && say "ssh failed ($(tail -n 1 "$scratch/ssh")); the run goes on without it, trying again"
      [ "$silent" -lt 10 ] || { say "no answer from the workers for $silent times" && unreachable=2 && return "$INFRASTRUCTURE"; }
      continue
    fi
    ended=$(grep -cE '^@worker .* (exit [0-9]+|lost|none|stopped)$' <<<"$answer")
    if [ "$ended" -ge "$started" ]; then
      tail_first
      verdict "$answer"
      return
    fi
    if grep -qE '^@worker .* (exit [1-9][0-9]*|lost|none)$' <<<"$answer"; then
      if [ -z "$failed_at" ]; then
        failed_at=$SECONDS
        say "a worker has failed: $(grep -E '(exit [1-9][0-9]*|lost|none)$' <<<"$answer" | paste -sd ';' -); the others have $grace s to end"
      elif [ $((SECONDS - failed_at)) -ge "$grace" ]; then
        worker kill "$name" >/dev/null
      fi
    fi
  done
}

# What the ends of all workers mean. One that failed for a fault in the code has the last word: the others fail because of it.
verdict() {
  sed -n 's/^@worker /  /p' <<<"$1" >&2
  if grep -q ' stopped$' <<<"$1"; then return "$PREEMPTED"; fi
  if grep -qE ' exit (1|126|127)$' <<<"$1"; then return "$FAULT"; fi
  if grep -q ' exit 2$' <<<"$1"; then return "$BAD_INPUT"; fi
  if grep -qE ' (exit [1-9][0-9]*|lost|none)$' <<<"$1"; then return "$INFRASTRUCTURE"; fi
  return "$DONE"
}

# One file for each worker, in $1.
collect() {
  local folder=$1 answer
  if [ -n "$dry_run" ]; then
    worker logs "$name"
    return
  fi
  mkdir -p "$folder"
  answer=$(worker logs "$name" 2>/dev/null)
  awk -v folder="$folder" '/^@log / { file = folder "/" $2 ".log"; sub(/^@log [^ ]+ ?/, ""); print > file }' <<<"$answer"
  say "logs of the workers that answered: $(find "$folder" -name '*.log' | wc -l) in $folder"
}

stop() {
  local until=$((SECONDS + grace)) answer
  worker stop "$name" || return "$INFRASTRUCTURE"
  [ -z "$dry_run" ] || { worker status "$name" && return; }
  while answer=$(worker status "$name") && grep -q ' running$' <<<"$answer"; do
    [ $SECONDS -lt $until ] || { say "not every worker has ended within $grace s: they are killed" && worker kill "$name" && break; }
    sleep "$poll"
  done
  worker status "$name" | sed -n 's/^@worker /  /p'
}

# ------------------------------------------------------------------------------------------------ from request to result

one_attempt() {
  provision || return
  ship && start
  local code=$?
  if [ "$code" != 0 ]; then
    unreachable=$((unreachable + 1))
    return "$code"
  fi
  unreachable=0
  follow
}

# Until the run is done, or has failed in a way that it would again.
persist() {
  local attempt=1 failed=0 pause=$backoff began code
  unreachable=0
  while :; do
    began=$SECONDS started=0
    say "attempt $attempt"
    one_attempt
    code=$?
    [ "$code" = "$DONE" ] && break
    [ "$started" = 0 ] || collect "$here/runs/launch/$name/attempt-$attempt"
    [ "$code" = "$INFRASTRUCTURE" ] || break
    [ $((SECONDS - began)) -lt 1800 ] || { failed=0 pause=$backoff; }
    failed=$((failed + 1)) attempt=$((attempt + 1))
    if [ "$failed" -ge "$attempts" ]; then
      say "giving up after $failed attempts in a row that failed early"
      break
    fi
    if [ "$unreachable" -ge 2 ]; then
      say "the cloud has the machines for $(state), and they do not answer: others are asked for"
      unreachable=0
      erase || exit "$INFRASTRUCTURE"
    fi
    say "attempt $attempt follows in $pause s; the workdir is the same"
    sleep "$pause"
    pause=$((pause * 2 > 900 ? 900 : pause * 2))
  done
  case $code in
    "$DONE") say "the run is done: $workdir" ;;
    "$PREEMPTED") say "the run was stopped; the same command goes on from there" ;;
    "$INFRASTRUCTURE") ;;
    *) say "the run failed with exit code $code and would again: no retry; the end of the log above says why" ;;
  esac
  [ -n "$keep" ] || erase || exit "$INFRASTRUCTURE"
  return "$code"
}

main() {
  parse "$@"
  check
  scratch=''
  [ -n "$dry_run" ] || scratch=$(mktemp -d)
  exec 3>&2
  trap on_exit EXIT
  trap 'exec 2>&3; say "stopped here; what runs on the workers goes on, and the command run follows it again"; exit 130' INT TERM
  started=0
  case $command in
    create) provision ;;
    setup) billed=yes && pack && ship ;;
    run)
      billed=yes unreachable=0
      start && follow
      local code=$?
      [ "$code" = 0 ] || [ "$started" = 0 ] || collect "$here/runs/launch/$name/logs"
      return "$code"
      ;;
    logs) billed=yes && collect "$here/runs/launch/$name/logs" ;;
    status)
      [ -n "$dry_run" ] && queued describe "$name" '--format=value(state.state)'
      [ -n "$dry_run" ] || { now=$(state) && echo "queued resource $name: $now"; }
      [ "${now:-ACTIVE}" != ACTIVE ] || { billed=yes && worker status "$name" | sed 's/^@worker /  /'; }
      ;;
    stop) billed=yes && stop ;;
    delete) erase ;;
    all) pack && persist ;;
  esac
}

main "$@"
