"""Plays `gcloud` for the tests of launch_tpu.sh: one queued resource, whose workers are folders and whose ssh runs the command there.

It knows the flags of the commands it plays (Google Cloud SDK's reference pages) and refuses others. Everything is in the folder
FAKE_CLOUD: plan.json says what happens, calls has a line for each call, homes/ the disks of the workers, buckets/ the buckets, bin/ what
a worker finds on its path.

plan.json, all optional:
  account, project, zone   of the configuration; "" for none
  workers                  of one slice (2)
  create_errors            what each request to create ends with; null: it is taken
  states                   for each machine that is created, the states that describe gives, the last one from then on
  failure                  what a FAILED resource says
  preempt                  for each machine, [path below FAKE_CLOUD, pattern]: taken away once that file has it; null: never
  ssh                      exit codes of single calls of ssh, by their number from 0: 255 does nothing; -255 runs the command first
  delete_errors            how many calls of delete fail
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

WIDE = "--project --quiet --format --verbosity --account"
SSH = "--batch-size --dry-run --force-key-file-overwrite --node --plain --ssh-key-file --strict-host-key-checking --worker --zone"
FLAGS = {
    "auth list": "--filter --filter-account --limit",
    "config get-value": "",
    "compute tpus queued-resources create": "--zone --runtime-version --accelerator-type --topology --type --node-id --node-count"
    " --node-prefix --async --data-disk --description --guaranteed --internal-ips --labels --metadata --metadata-from-file --network"
    " --range --reserved --scopes --service-account --shielded-secure-boot --spot --subnetwork --tags --valid-after-duration"
    " --valid-after-time --valid-until-duration --valid-until-time",
    "compute tpus queued-resources describe": "--zone",
    "compute tpus queued-resources delete": "--zone --async --force",
    "compute tpus queued-resources ssh": f"{SSH} --ssh-flag --command --output-directory --internal-ip --tunnel-through-iap",
    "compute tpus queued-resources scp": f"{SSH} --compress --recurse --scp-flag --internal-ip --tunnel-through-iap",
    # Known for the document's sake, and not played.
    "compute tpus queued-resources list": "--zone --filter --limit",
    "compute tpus tpu-vm list": "--zone --filter --limit",
    "compute tpus accelerator-types list": "--zone --filter --limit",
    "services enable": "--async",
    "storage buckets create": "--location --uniform-bucket-level-access --enable-hierarchical-namespace",
    "storage buckets add-iam-policy-binding": "--member --role",
    "iam service-accounts create": "--display-name",
}
SWITCHES = set(
    "--quiet --async --spot --reserved --guaranteed --force --recurse --compress --internal-ips --plain --uniform-bucket-level-access"
    " --enable-hierarchical-namespace".split()
)

CLOUD = Path(os.environ["FAKE_CLOUD"])
MEMORY = CLOUD / "memory.json"


@contextlib.contextmanager
def _remembered():
    """What the cloud knows now, for change; held against other calls, since several launchers may follow one run."""
    with (CLOUD / "memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        now = json.loads(MEMORY.read_text()) if MEMORY.exists() else {"machine": -1, "there": False, "ssh": 0, "creates": 0, "deletes": 0}
        yield now
        MEMORY.write_text(json.dumps(now))


plan = json.loads((CLOUD / "plan.json").read_text())
with _remembered() as memory:
    pass
found = dict(memory)


def main(arguments: list[str]) -> int:
    with (CLOUD / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    for command, known in FLAGS.items():
        words = command.split()
        if arguments[: len(words)] == words:
            positional, flags = _parse(arguments[len(words) :], set(f"{known} {WIDE}".split()))
            try:
                return PLAYED[command](positional, flags)
            finally:
                with _remembered() as now:  # another call may have changed it meanwhile, such as a deletion during this ssh
                    now.update({name: value for name, value in memory.items() if name not in found or found[name] != value})
    return _error(f"(gcloud) Invalid choice: {' '.join(arguments[:4])}", 2)


def _parse(arguments: list[str], known: set[str]) -> tuple[list[str], dict[str, str]]:
    positional, flags, rest = [], {}, list(arguments)
    while rest:
        word = rest.pop(0)
        name, given, value = word.partition("=")
        if not word.startswith("--"):
            positional.append(word)
            continue
        if name not in known:
            sys.exit(_error(f"(gcloud) unrecognized arguments: {name}", 2))
        if not given and name not in SWITCHES:
            if not rest:
                sys.exit(_error(f"(gcloud) argument {name}: expected one argument", 2))
            value = rest.pop(0)
        flags[name] = value
    return positional, flags


def _error(words: str, code: int = 1) -> int:
    print(f"ERROR: {words}", file=sys.stderr)
    return code


def account(positional, flags):
    print(plan.get("account", "someone@example.com"))
    return 0


def setting(positional, flags):
    value = plan.get({"project": "project", "compute/zone": "zone"}[positional[0]], "")
    print(value) if value else print("(unset)", file=sys.stderr)
    return 0


def create(positional, flags):
    errors = plan.get("create_errors", [])
    error = errors[memory["creates"]] if memory["creates"] < len(errors) else None
    memory["creates"] += 1
    if ("--node-id" in flags) == ("--node-count" in flags) or not flags.get("--runtime-version") or "--accelerator-type" not in flags:
        return _error("(gcloud.compute.tpus.queued-resources.create) exactly one of --node-id, --node-count must be specified", 2)
    if "--spot" in flags and "--reserved" in flags:
        return _error("(gcloud.compute.tpus.queued-resources.create) INVALID_ARGUMENT: one tier only")
    if memory["there"]:
        return _error(f"(gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: {positional[0]}")
    if error:
        return _error(f"(gcloud.compute.tpus.queued-resources.create) {error}")
    slices = int(flags.get("--node-count", 1))
    names = [f"w-{node}-{worker}" for node in range(slices) for worker in range(plan.get("workers", 2))]
    memory.update(machine=memory["machine"] + 1, there=True, seen=0, slices=slices, names=names, gone=False)
    for name in names:
        _home(name).mkdir(parents=True)
    return 0


def describe(positional, flags):
    if not memory["there"]:
        return _error("(gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found", 1)
    if "failedData" in flags.get("--format", ""):
        print(plan.get("failure", "") if _state() == "FAILED" else "")
        return 0
    print(_state())
    memory["seen"] += 1
    return 0


def _state() -> str:
    if memory["gone"]:
        return "SUSPENDED"
    states = plan.get("states", [])
    mine = states[memory["machine"]] if memory["machine"] < len(states) else ["ACTIVE"]
    return mine[min(memory["seen"], len(mine) - 1)]


def delete(positional, flags):
    memory["deletes"] += 1
    if memory["deletes"] <= plan.get("delete_errors", 0):
        return _error("(gcloud.compute.tpus.queued-resources.delete) UNAVAILABLE: try again")
    if not memory["there"]:
        return _error("(gcloud.compute.tpus.queued-resources.delete) NOT_FOUND: Resource was not found")
    if _state() == "ACTIVE" and "--force" not in flags:
        return _error("(gcloud.compute.tpus.queued-resources.delete) FAILED_PRECONDITION: it has nodes")
    take_away(CLOUD / "homes")
    memory.update(there=False)
    return 0


def take_away(homes: Path) -> None:
    """The machines end as they do in the cloud: at once, with everything on them."""
    for pid in homes.glob("*/*/vlm_jax/runs/*/pid"):
        with contextlib.suppress(OSError, ValueError):
            os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
    shutil.rmtree(homes, ignore_errors=True)


def _home(name: str) -> Path:
    return CLOUD / "homes" / str(memory["machine"]) / name


def _chosen(flags) -> list[str]:
    node, worker = flags.get("--node", "0"), flags.get("--worker", "0")
    return [n for n in memory["names"] if re.fullmatch(f"w-{'.*' if node == 'all' else node}-{'.*' if worker == 'all' else worker}", n)]


def _reachable() -> bool:
    preempt = plan.get("preempt", [])
    mine = preempt[memory["machine"]] if memory["there"] and memory["machine"] < len(preempt) else None
    if mine and not memory["gone"] and (CLOUD / mine[0]).exists() and re.search(mine[1], (CLOUD / mine[0]).read_text()):
        memory["gone"] = True
        take_away(CLOUD / "homes")
    return memory["there"] and _state() == "ACTIVE"


def scp(positional, flags):
    *sources, target = positional
    if not _reachable():
        return _error("ssh: connect to host: Connection refused", 255)
    for name in _chosen(flags):
        for source in sources:
            shutil.copy(source, _home(name) / target.partition(":")[2])
    return 0


def ssh(positional, flags):
    code = plan.get("ssh", {}).get(str(memory["ssh"]), 0)
    memory["ssh"] += 1
    if not _reachable() or code == 255:
        return _error("ssh: connect to host 10.0.0.1 port 22: Connection timed out", 255)
    running = []
    for number, name in enumerate(memory["names"]):
        if name not in _chosen(flags):
            continue
        environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_PROCESS")} | {
            "HOME": str(_home(name)),
            "PATH": f"{CLOUD}/bin:/usr/bin:/bin",
            "FAKE_HOST": name,
            # What the metadata of a TPU machine says to JAX.
            "JAX_NUM_PROCESSES": str(len(memory["names"])),
            "JAX_PROCESS_ID": str(number),
        }
        # gcloud parts the command at spaces, and ssh joins it again.
        command = " ".join(flags["--command"].split(" "))
        running.append(subprocess.Popen(["bash", "-c", command], cwd=_home(name), env=environment, stdin=subprocess.DEVNULL))
    codes = [child.wait() for child in running]
    if code == -255:
        return _error("client_loop: send disconnect: Broken pipe", 255)
    return next((c for c in codes if c), 0)


PLAYED = dict(zip(FLAGS, (account, setting, create, describe, delete, ssh, scp), strict=False))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
