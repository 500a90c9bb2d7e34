"""launch_tpu.sh against a cloud that is played by tests/fake_gcloud.py: the shell commands of the workers really run, in folders."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import test_documents

from vlm_jax import config, errors

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("launch_tpu.sh", "launch_tpu_worker.sh")
SHIPPED = (*SCRIPTS, "pyproject.toml", "configs/tpu_flags.txt", "configs/demo.py")
COMMANDS = ("create", "setup", "run", "logs", "status", "stop", "delete", "all")
SLICE = ("--type", "v4-32")
"""Four workers; the cloud of the tests gives two."""
RUN = (*SLICE, "--workdir", "gs://bucket/run", "--", "configs/demo.py", "--steps", "8")
STEP = "buckets/bucket/run/step"
PROFILE = "overlap"

STUBS = {
    "hostname": 'echo "$FAKE_HOST"',
    "mountpoint": '[ -L "$2" ]',
    "gcsfuse": """
        [ "$1 $2 $3" = "--implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0" ] || exit 2
        [ -d "$FAKE_CLOUD/buckets/$4" ] || { echo "Error: bucket $4: permission denied" && exit 1; }
        rmdir "$5" && ln -s "$FAKE_CLOUD/buckets/$4" "$5"
        setsid sleep 300 </dev/null >/dev/null 2>&1 & # it stays to serve the mount
        echo "$!" >>"$FAKE_CLOUD/daemons"
    """,
    "python3.13": """
        [ "$1" = -c ] && exit
        mkdir -p "$3/bin" && cp "$FAKE_CLOUD/bin/of_an_environment" "$3/bin/python"
    """,
    "of_an_environment": """
        case "$*" in
          "-m pip install"*) echo "$FAKE_HOST $*" >>"$FAKE_CLOUD/pip"; [ ! -e "$FAKE_CLOUD/no_index" ] ;;
          "-m pip uninstall"*) ;;
          "-u -m vlm_jax.train "*) exec "$FAKE_CLOUD/bin/train" "${@:4}" ;;
          *) exit 9 ;;
        esac
    """,
    # A training that saves every step; fail-HOST makes that worker end with the exit code in it, once.
    "train": """
        for word; do last=$word; done
        [ -f "$1" ] || exit 2
        mkdir -p "$last" && step=$(cat "$last/step" 2>/dev/null || echo 0)
        echo "$FAKE_HOST with $LIBTPU_INIT_ARGS from step $step" | tee -a "$FAKE_CLOUD/starts"
        trap 'echo "stopped after step $step"; exit 3' TERM
        while [ "$step" -lt "$3" ]; do
          if [ -e "$FAKE_CLOUD/fail-$FAKE_HOST" ] && [ "$step" -ge 2 ]; then
            code=$(cat "$FAKE_CLOUD/fail-$FAKE_HOST") && rm "$FAKE_CLOUD/fail-$FAKE_HOST"
            echo "error: the cause" && exit "$code"
          fi
          step=$((step + 1)) && echo "step $step"
          [ "$JAX_PROCESS_ID" != 0 ] || { echo "$step" >"$last/part" && mv "$last/part" "$last/step"; }
          sleep 0.1
        done
    """,
}


class Cloud:
    """A checkout with one commit, and the played cloud."""

    def __init__(self, folder: Path):
        self.launchers: list[subprocess.Popen] = []
        self.folder, self.checkout, self.poll = folder / "cloud", folder / "checkout", "0.2"
        for name in SHIPPED:
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.checkout / name)
        (self.checkout / ".gitignore").write_text("/runs/\n")
        self.git("init", "-q")
        self.commit()
        (self.folder / "buckets" / "bucket").mkdir(parents=True)
        for name, script in STUBS.items():
            self.program(self.folder / "bin" / name, f"#!/usr/bin/env bash\n{textwrap.dedent(script)}")
        cli = f'#!/bin/sh\nexec {sys.executable} -S -E {ROOT}/tests/fake_gcloud.py "$@"\n'
        self.program(self.folder / "cli" / "gcloud", cli)
        self.environment = os.environ | {"PATH": f"{self.folder}/cli:/usr/bin:/bin", "FAKE_CLOUD": str(self.folder)}
        self.play()

    def program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=self.checkout, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change")

    def play(self, **plan) -> None:
        """Says what happens; see tests/fake_gcloud.py."""
        (self.folder / "plan.json").write_text(json.dumps({"project": "p", "zone": "z"} | plan))

    def start(self, command: str, *arguments: str) -> subprocess.Popen:
        options = ("--poll", self.poll, "--backoff", "0", "--grace", "1", *arguments)
        words = ["bash", "launch_tpu.sh", command, *options]
        said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and so would bash
        try:
            self.launchers.append(subprocess.Popen(words, cwd=self.checkout, env=self.environment, **said))
        finally:
            signal.signal(signal.SIGINT, before)
        return self.launchers[-1]

    def launch(self, command: str, *arguments: str) -> tuple[int, str]:
        """Exit code, and what was said."""
        launched = self.start(command, *arguments)
        said, _ = launched.communicate(timeout=180)
        return launched.returncode, said

    def calls(self, verb: str) -> list[list[str]]:
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [call for call in map(json.loads, lines) if verb in call[:5]]

    def starts(self) -> list[str]:
        return (self.folder / "starts").read_text().splitlines()

    def billed(self) -> bool:
        return json.loads((self.folder / "memory.json").read_text())["there"]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    cloud = Cloud(tmp_path)
    monkeypatch.setenv("FAKE_CLOUD", str(cloud.folder))
    yield cloud
    for launcher in cloud.launchers:
        launcher.kill()
        launcher.communicate()
    fake_gcloud().take_away(cloud.folder / "homes")
    daemons = cloud.folder / "daemons"
    for daemon in map(int, daemons.read_text().split() if daemons.exists() else ()):
        os.kill(daemon, signal.SIGKILL)


def fake_gcloud():
    spec = importlib.util.spec_from_file_location("fake_gcloud", ROOT / "tests" / "fake_gcloud.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    checker = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run([checker, script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


# ------------------------------------------------------------------------------------------------ what is printed, and refused


def test_a_dry_run_of_every_example_prints_commands_that_gcloud_knows_and_runs_none(cloud):
    fake = fake_gcloud()
    for command in COMMANDS:
        code, text = cloud.launch(command, "--help")
        assert code == errors.DONE and "options" in text
        (example,) = re.findall(r"^  \./launch_tpu\.sh (.*)", text, re.MULTILINE)
        assert example.startswith(f"{command} --name")
        _, *words = shlex.split(example.replace("configs/siglip.py", "configs/demo.py"))
        code, text = cloud.launch(command, "--dry-run", *words)
        assert code == errors.DONE, text
        lines = [shlex.split(line) for line in text.splitlines() if line.startswith("gcloud ")]
        assert lines and not cloud.calls("compute")
        for _, *words in lines:
            verb = " ".join(words[:4])
            fake._parse(words[4:], set(f"{fake.FLAGS[verb]} {fake.WIDE}".split()))


def test_every_command_of_the_documents_is_one_that_the_launcher_and_gcloud_take(cloud):
    fake, seen = fake_gcloud(), set()
    shutil.copytree(ROOT / "configs", cloud.checkout / "configs", dirs_exist_ok=True)
    cloud.commit()
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for line in [line for document in documents for line in test_documents.commands(document.read_text())]:
        program, *words = shlex.split(line, comments=True)
        if program == "./launch_tpu.sh":
            code, text = cloud.launch(words[0], "--dry-run", "--project", "p", "--zone", "z", *words[1:])
            assert code == errors.DONE and "gcloud compute tpus queued-resources" in text, f"{line}\n{text}"
            seen.add(words[0])
        elif program == "gcloud":
            known = [command for command in fake.FLAGS if f"{' '.join(words)} ".startswith(f"{command} ")]
            assert known, f"{line}: gcloud is not known to have it"
            fake._parse(words, set(f"{fake.FLAGS[known[0]]} {fake.WIDE}".split()))
    assert seen == set(COMMANDS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--type", "v5litepod-256", "--capacity", "spot", "--valid-until", "6h"), "--accelerator-type=v5litepod-256"
         " --runtime-version=v2-alpha-tpuv5-lite --async --quiet --spot --valid-until-duration=6h"),
        (("--type", "v4-128", "--slices", "4", "--capacity", "reserved"), "--node-count=4 --node-prefix=vlm --accelerator-type=v4-128"
         " --runtime-version=tpu-ubuntu2204-base --async --quiet --reserved"),
        (("--type", "v6e-8", "--service-account", "a@b"), "--node-id=vlm --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --async"
         " --quiet --service-account=a@b --scopes=https://www.googleapis.com/auth/cloud-platform"),
    ],
)  # fmt: skip
def test_capacity_slices_and_generation_become_the_flags_of_the_request(cloud, options, expected):
    code, text = cloud.launch("create", *options, "--dry-run", "--project", "p", "--zone", "z")
    assert code == errors.DONE and f"{expected} --zone=z --project=p" in text


@pytest.mark.parametrize(
    ("command", "arguments", "plan", "message"),
    [
        ("all", RUN, {"account": ""}, "gcloud is not logged in: gcloud auth login"),
        ("all", RUN, {"project": ""}, "no --project is given, and gcloud has none"),
        ("all", RUN, {"zone": ""}, "no --zone is given, and gcloud has none"),
        ("all", ("--dry-run", *RUN), {}, "--dry-run asks no cloud: name --project and --zone"),
        ("run", (*SLICE, "--workdir", "runs/x", "--", "configs/demo.py"), {}, "the 4 workers of 1 x v4-32 must share it"),
        ("all", ("--type", "v5p-8", "--workdir", "runs/x", "--", "configs/demo.py"), {}, "it would be lost with the machine"),
        ("run", (*SLICE, "--workdir", "gs://b/x"), {}, "no recipe is named"),
        ("run", (*SLICE, "--workdir", "gs://b/x", "--", "configs/new.py"), {}, "configs/new.py: not in the commit that is shipped"),
        ("run", (*SLICE, "--", "configs/demo.py", "--workdir", "gs://b/x"), {}, "--workdir stands before the --"),
        ("run", ("--flags-profile", "fast", *RUN), {}, "configs/tpu_flags.txt has none for v4; it has overlap (v4,v5p,v6e)"),
        ("create", (), {}, "no --type is given"),
        ("create", ("--type", "v5e-16"), {}, "--type 'v5e-16': no such TPU; write v4-N, v5litepod-N"),
        ("create", ("--type", "v4-many"), {}, "it ends in no number"),
        ("create", (*SLICE, "--capacity", "cheap"), {}, "must be on-demand, spot or reserved"),
        ("create", (*SLICE, "--spot"), {}, "--spot: no such option"),
        ("create", (*SLICE, "--name", "My Run"), {}, "--name 'My Run': lower-case letters"),
        ("create", (*SLICE, "--slices", "0"), {}, "--slices '0': must be a number from 1"),
        ("create", (*SLICE, "--poll", "1m"), {}, "--poll '1m': must be seconds"),
        ("fly", (), {}, "no command is called 'fly'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked_for(cloud, command, arguments, plan, message):
    cloud.play(**plan)
    code, text = cloud.launch(command, *arguments)
    assert code == errors.BAD_INPUT and message in text
    assert not cloud.calls("compute")


def test_a_bucket_is_no_folder_for_a_run():
    with pytest.raises(errors.InputError, match="workdir gs://b/x: not a folder; mount the bucket"):
        config.Config(workdir="gs://b/x", system=None, data=None)  # pyright: ignore[reportArgumentType]


def test_without_gcloud_the_message_says_where_to_get_it(cloud):
    (cloud.folder / "cli" / "gcloud").unlink()
    for tool in ("bash", "dirname"):
        (cloud.folder / "cli" / tool).symlink_to(shutil.which(tool) or "")
    cloud.environment["PATH"] = f"{cloud.folder}/cli"
    assert cloud.launch("status") == (errors.BAD_INPUT, "error: gcloud is not installed: https://cloud.google.com/sdk/docs/install\n")


# ------------------------------------------------------------------------------------------------ whole runs


def test_a_preempted_run_is_made_anew_goes_on_in_the_same_workdir_and_leaves_nothing(cloud):
    """R12: preemption."""
    cloud.play(states=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]], preempt=[[STEP, "[4-9]|.."]])
    code, text = cloud.launch("all", "--flags-profile", PROFILE, *RUN[:-1], "30")
    assert code == errors.DONE, text
    assert (cloud.folder / STEP).read_text() == "30\n"
    starts = cloud.starts()
    resumed = int([line for line in starts if "w-0-0" in line][-1].rpartition(" ")[2])
    assert len(cloud.calls("create")) == 2 and len(starts) == 4 and 4 <= resumed < 30
    assert all("w-0-0 with --xla_" in line for line in starts if "w-0-0" in line)
    for line in ("queued resource vlm: WAITING_FOR_RESOURCES", "the machines are gone: SUSPENDED", f"from step {resumed}", "step 30"):
        assert line in text
    assert not cloud.billed() and "STILL THERE" not in text
    assert "--force" in cloud.calls("delete")[-1]
    logs = sorted(path.name for path in (cloud.folder / "buckets/bucket/run/logs").iterdir())
    assert [name.rsplit("-", 2)[0] for name in logs] == ["w-0-0", "w-0-1"], "the bucket keeps the logs"
    print(f"R12 preemption: taken away after step {resumed}, made anew, resumed from step {resumed}, done and deleted")


@pytest.mark.parametrize("code", [errors.FAULT, errors.BAD_INPUT])
def test_a_fault_in_one_worker_ends_the_others_and_is_not_retried(cloud, code):
    """R12: a code error."""
    (cloud.folder / "fail-w-0-1").write_text(str(code))
    ended, text = cloud.launch("all", *RUN[:-1], "100")
    assert ended == code, text
    assert len(cloud.calls("create")) == 1 and len(cloud.starts()) == 2 and not cloud.billed()
    assert f"a worker has failed: @worker w-0-1 exit {code}; the others have 1 s to end" in text
    assert f"  w-0-0 exit {128 + signal.SIGKILL}" in text and "would again: no retry" in text
    logs = {path.name: path.read_text() for path in (cloud.checkout / "runs/launch/vlm/attempt-1").iterdir()}
    assert set(logs) == {"w-0-0.log", "w-0-1.log"} and "error: the cause" in logs["w-0-1.log"] and "step 1" in logs["w-0-0.log"]
    print(f"R12 exit code {code} of one worker of two: no retry, both logs fetched, machines deleted")


def test_a_failure_of_infrastructure_is_retried_on_the_machines_that_are_there(cloud):
    for worker in ("w-0-0", "w-0-1"):
        (cloud.folder / f"fail-{worker}").write_text(str(errors.INFRASTRUCTURE))
    code, text = cloud.launch("all", *RUN)
    assert code == errors.DONE, text
    assert len(cloud.calls("create")) == 1 and len(cloud.starts()) == 4
    assert "setup kept environment" in text and len((cloud.folder / "pip").read_text().splitlines()) == 2


def test_a_dropped_ssh_neither_ends_the_run_nor_starts_it_twice(cloud):
    """R12: ssh 255."""
    # The calls of ssh: setup, start, then log and status in turn.
    cloud.play(ssh={"1": -255, "5": 255, "6": 255, "7": 255, "8": 255})
    code, text = cloud.launch("all", *RUN[:-1], "20")
    assert code == errors.DONE, text
    assert len(cloud.starts()) == 2 and "@worker w-0-0 running" in text
    assert "ssh failed (ERROR: ssh: connect to host 10.0.0.1 port 22: Connection timed out); the run goes on" in text
    steps = re.findall(r"^step (\d+)$", text, re.MULTILINE)
    assert steps == [str(step) for step in range(1, 21)], "each line of worker 0 once"
    print(f"R12 ssh 255: {text.count('ssh failed')} drops and one at the start; one start of each worker, {len(steps)} lines once each")


@pytest.mark.slow
def test_machines_that_the_cloud_has_and_that_do_not_answer_are_replaced(cloud):
    cloud.play(ssh={str(call): 255 for call in range(4, 24)})
    code, text = cloud.launch("all", *RUN[:-1], "60")
    assert code == errors.DONE and len(cloud.calls("create")) == 2, text
    assert "no answer from the workers for 10 times" in text and "for ACTIVE, and they do not answer: others are asked for" in text


def test_stop_ends_the_run_that_another_launcher_follows_and_its_machines_go(cloud):
    following = cloud.start("all", *RUN[:-1], "1000")
    while not (cloud.folder / STEP).exists():
        assert following.poll() is None
        time.sleep(0.02)
    cloud.launch("stop", "--grace", "60")
    text, _ = following.communicate(timeout=120)
    assert following.returncode == errors.PREEMPTED and "the run was stopped; the same command goes on from there" in text
    assert len(cloud.starts()) == 2 and not cloud.billed()


QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZone' has been exceeded. Limit: 0 in zone z."


@pytest.mark.parametrize("plan", [{"create_errors": [QUOTA]}, {"states": [["FAILED"]], "failure": QUOTA}], ids=["request", "resource"])
def test_a_quota_that_is_too_small_is_said_and_not_asked_again(cloud, plan):
    """R12: quota."""
    cloud.play(**plan)
    code, text = cloud.launch("all", *RUN)
    assert code == errors.BAD_INPUT and len(cloud.calls("create")) == 1
    assert "the quota of p in z does not allow 1 x v4-32 (on-demand): ask for more at https://" in text
    assert not cloud.billed() and "STILL THERE" not in text
    print("R12 quota: one request, words, nothing left")


@pytest.mark.slow
def test_requests_that_find_no_capacity_are_repeated_up_to_a_limit(cloud):
    full = "There is no more capacity in the zone z; you can try in another zone"
    cloud.play(create_errors=[full], states=[["FAILED"], ["ACTIVE"]], failure=full)
    code, text = cloud.launch("all", *RUN[:-1], "2")
    assert code == errors.DONE and len(cloud.calls("create")) == 3, text
    cloud.play(create_errors=[full] * 20)
    (cloud.folder / "memory.json").unlink()
    code, text = cloud.launch("all", "--attempts", "3", *RUN)
    assert code == errors.INFRASTRUCTURE and "giving up after 3 attempts" in text and len(cloud.calls("create")) == 6


def test_an_environment_that_cannot_be_made_ends_it_and_nothing_is_left(cloud):
    (cloud.folder / "no_index").touch()
    code, text = cloud.launch("all", *RUN)
    assert code == errors.BAD_INPUT and "the environment could not be made" in text and not cloud.billed()


def test_a_bucket_that_cannot_be_read_is_named(cloud):
    code, text = cloud.launch("all", *RUN, "--data.train", "gs://other/x-{00000..00002}.tar")
    assert code == errors.BAD_INPUT and "Error: bucket other: permission denied" in text and not cloud.billed()


@pytest.mark.slow
def test_machines_that_stay_are_named_with_the_command_that_deletes_them(cloud):
    command = "gcloud compute tpus queued-resources delete vlm --zone=z --project=p --force --quiet"
    code, text = cloud.launch("all", "--keep", *RUN)
    assert code == errors.DONE and cloud.billed() and "STILL THERE" in text and command in text
    cloud.play(delete_errors=2)
    code, text = cloud.launch("delete")
    assert code == errors.DONE and not cloud.billed() and "STILL THERE" not in text
    cloud.play(delete_errors=99)
    cloud.launch("create", *SLICE)
    code, text = cloud.launch("delete")
    assert code == errors.INFRASTRUCTURE and cloud.billed() and "STILL THERE" in text and command in text


# ------------------------------------------------------------------------------------------------ step by step


def test_each_command_does_its_part_and_ctrl_c_leaves_the_run_alone(cloud):
    code, text = cloud.launch("create", *SLICE)
    assert code == errors.DONE and cloud.billed() and "STILL THERE" in text
    (cloud.checkout / "configs" / "demo.py").write_text("changed = True\n")
    code, text = cloud.launch("setup")
    assert code == errors.DONE and "1 changes stay here:\n M configs/demo.py" in text
    home = cloud.folder / "homes" / "0" / "w-0-1"
    assert (home / "vlm_jax/current/configs/demo.py").read_text() == (ROOT / "configs/demo.py").read_text()
    assert "w-0-0 none" in cloud.launch("status")[1]

    following = cloud.start("run", *RUN[:-1], "1000")
    while not (cloud.folder / STEP).exists():
        assert following.poll() is None
        time.sleep(0.02)
    following.send_signal(signal.SIGINT)
    text, _ = following.communicate(timeout=120)
    assert following.returncode == 130 and "what runs on the workers goes on" in text and "STILL THERE" in text
    code, text = cloud.launch("status")
    assert "queued resource vlm: ACTIVE" in text and "w-0-0 running" in text and "w-0-1 running" in text

    code, text = cloud.launch("stop", "--grace", "60")
    assert code == errors.DONE and "w-0-0 stopped" in text
    assert cloud.launch("logs")[0] == errors.DONE
    assert "stopped after step" in (cloud.checkout / "runs/launch/vlm/logs/w-0-1.log").read_text()

    step = int((cloud.folder / STEP).read_text())
    code, text = cloud.launch("run", *RUN[:-1], str(step + 2))
    assert code == errors.DONE and f"from step {step}" in text
    assert cloud.launch("delete")[0] == errors.DONE and not cloud.billed()


def test_without_setup_or_a_python_that_is_new_enough_the_words_and_the_way_are_there(cloud):
    cloud.launch("create", *SLICE)
    code, text = cloud.launch("run", *RUN)
    assert code == errors.BAD_INPUT and "no code on the workers: ./launch_tpu.sh setup ships it" in text
    for version in ("3.11", "3.12", "3.13"):
        cloud.program(cloud.folder / "bin" / f"python{version}", "#!/bin/sh\nexit 1\n")
    brings = """#!/usr/bin/env bash
        echo "$*" >>"$FAKE_CLOUD/python3"
        [ "$2" != uv ] || { mkdir -p "${!#}/bin" && cp "$FAKE_CLOUD/bin/of_an_environment" "${!#}/bin/python"; }
    """
    cloud.program(cloud.folder / "bin" / "python3", textwrap.dedent(brings))
    code, text = cloud.launch("setup")
    assert code == errors.DONE and "w-0-1 setup new environment" in text
    said = (cloud.folder / "python3").read_text()
    assert "-m pip install --quiet --user uv" in said and "-m uv venv --quiet --seed --python 3.12" in said


def test_a_changed_pyproject_makes_a_new_environment_and_other_changes_do_not(cloud):
    cloud.launch("create", *SLICE)
    said = [cloud.launch("setup")[1]]
    (cloud.checkout / "configs" / "demo.py").write_text("changed = True\n")
    cloud.commit()
    said.append(cloud.launch("setup")[1])
    (cloud.checkout / "pyproject.toml").write_text("[project]\n")
    cloud.commit()
    said.append(cloud.launch("setup")[1])
    assert ["new environment" in text for text in said] == [True, False, True]
    home = cloud.folder / "homes" / "0" / "w-0-0" / "vlm_jax"
    assert len(list((home / "code").iterdir())) == 3 and len(list((home / "env").iterdir())) == 2
    assert (home / "current/configs/demo.py").read_text() == "changed = True\n"


@pytest.mark.slow
def test_a_real_training_of_two_workers_that_is_preempted_ends_with_the_losses_of_one_that_is_not(cloud, tiny_world):
    """R12, with the trainer: both workers are killed without warning, and every machine is a new one afterwards."""
    for name in ("vlm_jax", "tests/tiny_recipe.py"):
        target = cloud.checkout / name
        target.parent.mkdir(exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, target, ignore=ignored) if target.suffix == "" else shutil.copy(ROOT / name, target)
    cloud.commit()
    shutil.copytree(tiny_world, cloud.folder / "buckets" / "bucket" / "data")
    cloud.program(cloud.folder / "bin" / "train", f'#!/bin/sh\nexec {sys.executable} -u -m vlm_jax.train "$@"\n')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    here = {"PYTHONPATH": "tests", "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "VLM_JAX_HEARTBEAT": "10"}
    cloud.environment |= here | {"JAX_COORDINATOR_ADDRESS": address}
    cloud.play(preempt=[["buckets/bucket/run/metrics.jsonl", '"step": (1[2-9]|[2-9][0-9])']])

    def command(data: str) -> list[str]:
        parts = {"data.train": "train-*.array_record", "data.val": "val-*.array_record", "data.tokenizer.path": "tokenizer.model"}
        parts |= {"evaluators.held-out.classes": "classes.json", "evaluators.held-out.data": "held_out-*.array_record"}
        flags = [word for field, name in parts.items() for word in (f"--{field}", f"{data}/{name}")]
        return ["tests/tiny_recipe.py", *flags, "--steps", "40", "--save-every", "5", "--log-every", "1", "--eval-every", "0"]

    cloud.poll = "1"
    launched = cloud.start("all", *SLICE, "--workdir", "gs://bucket/run", "--", *command("gs://bucket/data"))
    text, _ = launched.communicate(timeout=900)
    assert launched.returncode == errors.DONE, text[-4000:]
    resumed = int(re.findall(r"resumed from step (\d+)", text)[-1])
    assert len(cloud.calls("create")) == 2 and 10 <= resumed < 40 and not cloud.billed()

    alone = os.environ | here | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    reference = [sys.executable, "-m", "vlm_jax.train", *command(str(tiny_world)), "--workdir", str(cloud.folder / "alone")]
    subprocess.run(reference, cwd=ROOT, env=alone, check=True, capture_output=True, timeout=900)

    def losses(workdir: Path) -> np.ndarray:
        rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return np.array([row["loss"] for row in rows if "grad_norm" in row])

    difference = np.abs(losses(cloud.folder / "buckets/bucket/run") / losses(cloud.folder / "alone") - 1).max()
    print(f"R12 training: killed, made anew, resumed from step {resumed}; largest relative difference of 40 losses {difference:.1e}")
    assert difference <= 1e-5


@pytest.mark.slow
def test_the_known_flags_are_those_of_gcloud_where_it_is_installed(cloud):
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("needs gcloud: https://cloud.google.com/sdk/docs/install")
    for command, known in fake_gcloud().FLAGS.items():
        page = subprocess.run([gcloud, *command.split(), "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
        synopsis = re.sub(r"\x1b\[[\d;]*m|\[no-\]", "", page).split("SYNOPSIS")[1].split("\nDESCRIPTION")[0]
        unknown = set(known.split()) - set(re.findall(r"--[a-z-]+", synopsis))
        assert not unknown, command
