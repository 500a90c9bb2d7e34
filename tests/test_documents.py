"""Every command line in the documents names what exists: recipes, flags, tasks, paths, extras, markers. Nothing is trained."""

import dataclasses
import importlib.util
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from vlm_jax import config as configs
from vlm_jax import convert, decoder, evaluate, image_tower, imported, plan, run, train
from vlm_jax.evaluation import caption_scores
from vlm_jax.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OTHERS = {"git", "cd", "tensorboard", "nproc", "ls", "du", "echo", "tar", "gcloud", "ssh-add"}
"""Programs that are not ours and whose arguments are not checked."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_what_exists(document, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    checker = Checker(monkeypatch, document.read_text())
    lines = commands(document.read_text())
    assert lines, "a document of ours shows a command"
    for line in lines:
        try:
            checker.check(line)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{document.name}: {line}\n{type(error).__name__}: {error}{capsys.readouterr().err}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", document.read_text())
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python -m vlm_jax.train configs/demo.py --stpes 3", "stpes"),
        ("python -m vlm_jax.train configs/demo.py --steps 3 --precision float16", "float16"),
        ("python -m vlm_jax.train configs/demos.py", "no such Python file"),
        ("python -m vlm_jax.evaluate --checkpoint runs/demo --tasks helt_out", "helt_out"),
        ("python -m vlm_jax.evaluate --checkpoint runs/nothing", "no command above makes it"),
        ("python -m vlm_jax.evaluate --checkpoint runs/demo/checkpoints/7", "no run above ends there"),
        ("python -m vlm_jax.evaluate --checkpoint runs/demo --evaluators.held-out.limits 3", "limits"),
        ("python -m vlm_jax.convert interpolate runs/a runs/b runs/c", "runs/a: no command above makes it"),
        ("python -m vlm_jax.convert theirs ours --to vlm_jxa", "vlm_jxa"),
        ("python -m vlm_jax.evaluation.caption_scores a.json b.json --image all", "--image"),
        ("python data/make_shapes.py --aut here", "aut"),
        ("python data/make_shape.py --out here", "make_shape"),
        ("pip install -e '.[fats]'", "fats"),
        ("pytest -m 'not slwo'", "slwo"),
        ("pytest tests/opps", "opps"),
        ("VLM_JAX_CASH=there pytest", "VLM_JAX_CASH"),
        ("rough check .", "rough"),
    ],
)
def test_a_wrong_command_is_noticed(line, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)) as error:
        Checker(monkeypatch, "").check(line)
    said = f"{error.value}{capsys.readouterr().err}"
    assert message in said
    assert "vlm_jax" not in line or "--------" not in said, "one line of words, not a frame"


def test_ci_runs_every_test_command_of_the_documents():
    script = " ".join((ROOT / ".ci" / "run").read_text().split()).replace('"', "'")
    lines = [line.replace('"', "'") for path in DOCUMENTS for line in commands(path.read_text())]
    shown = [line for line in lines if re.match(r"(python -m )?pytest\b", line)]
    assert shown
    assert not [line for line in shown if line.removeprefix("python -m ") not in script]


def commands(text: str) -> list[str]:
    """The commands of the fenced bash blocks: continued lines joined, those of `&&` parted, comments left out."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [part.strip() for line in "".join(blocks).replace("\\\n", " ").splitlines() for part in line.split("&&")]
    return [line for line in lines if line and not line.startswith("#")]


class Checker:
    """Checks the commands of one document in order: later ones may use the runs of earlier ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text: str):
        self.text, self.monkeypatch = text, monkeypatch
        self.runs: dict[str, list[configs.Config]] = {}

    def check(self, line: str) -> None:
        """Raises whatever the command's own parser raises, or AssertionError."""
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            self._variable(words.pop(0).partition("=")[0])
        match words:
            case []:
                pass
            case ["export", *variables]:
                for variable in variables:
                    self._variable(variable.partition("=")[0])
            case ["python" | "python3.11" | "python3.12", "-m", module, *arguments]:
                self._module(module, arguments)
            case ["python", script, *arguments]:
                self._script(script, arguments)
            case ["pip", "install", *arguments]:
                self._install(arguments)
            case ["pytest", *arguments]:
                self._pytest(arguments)
            case ["ruff" | "pyright" | "lint-imports" as tool, *_]:
                assert _requires("dev", {"lint-imports": "import-linter"}.get(tool, tool)), f"{tool}: not in the extra dev"
            case [("." | "source"), script]:
                assert script.endswith("/bin/activate") and script.removesuffix("/bin/activate") in self.text
            case [program, *_]:
                assert program in OTHERS or os.access(ROOT / program, os.X_OK), f"{program}: not a program we know"

    def _module(self, module: str, arguments: list[str]) -> None:
        if module == "vlm_jax.train":
            self._train(arguments)
        elif module == "vlm_jax.evaluate":
            self._evaluate(arguments)
        elif module == "vlm_jax.convert":
            self._convert(arguments)
        elif module == "vlm_jax.evaluation.caption_scores":
            self._caption_scores(arguments)
        elif module == "vlm_jax.plan":
            self._plan(arguments)
        elif module == "pytest":
            self._pytest(arguments)
        else:
            assert module == "venv", f"{module}: not a module we run"

    def _train(self, arguments: list[str]) -> None:
        recipe = next((a for a in arguments if a.endswith(".py")), "")
        if not Path(recipe).exists() and f"# {recipe}\n" in self.text:
            return  # a worked example: test_contributing.py runs this test where it exists
        runs = self.runs

        class Built:
            def __init__(self, config):
                runs.setdefault(config.workdir, []).append(config)

            train = try_out = lambda self: 0

        self.monkeypatch.setattr(run.Run, "build", lambda config, name: Built(config))
        if arguments[-1] in ("-h", "--help"):
            arguments = arguments[:-1]
            assert len(arguments) <= 1, "--help alone after the recipe"
        assert train.main(arguments) == 0

    def _evaluate(self, arguments: list[str]) -> None:
        class Parsed(Exception):
            """All that can be said of the command without a run has been said."""

        def parsed(*_):
            raise Parsed

        def of_checkpoint(path: str, **_):
            workdir, _, number = path.partition("/checkpoints/")
            recipe = ROOT / "configs" / f"{Path(workdir).name}.py"
            made = self.runs.get(workdir, [])
            if workdir.startswith("runs/") and recipe.exists():
                made = [configs.load_recipe(str(recipe))[0], *made]
            assert made, f"{workdir}: no command above makes it"
            assert number in ("", *(str(config.steps) for config in made)), f"{path}: no run above ends there"
            return made[-1], Path(workdir), None

        self.monkeypatch.setattr(configs, "of_checkpoint", of_checkpoint)
        self.monkeypatch.setattr(checkpoint, "steps", lambda workdir: [1])
        self.monkeypatch.setattr(evaluate.suites, "check", lambda evaluators: None)
        for what_follows in ("_folder", "_compare", "_serve"):
            self.monkeypatch.setattr(evaluate, what_follows, parsed)
        with pytest.raises(Parsed):
            evaluate.main(arguments)

    def _convert(self, arguments: list[str]) -> None:
        read = []

        class Parsed(Exception):
            """The command line is understood."""

        def load(path: str, *_, **__):
            read.append(path)
            if path.startswith("runs/"):
                assert path in self.runs, f"{path}: no command above makes it"
            if len(read) == (2 if arguments[0] == "interpolate" else 1):
                raise Parsed

        self.monkeypatch.setattr(imported, "load", load)
        for part in (image_tower, decoder):
            self.monkeypatch.setattr(part, "export", load)
        self.monkeypatch.setattr(imported, "check_target", lambda target: None)
        with pytest.raises(Parsed):
            convert.main(arguments)
        target = arguments[arguments.index(read[-1]) + 1]
        self.runs.setdefault(target, self.runs.get(read[0], []))

    def _plan(self, arguments: list[str]) -> None:
        class Parsed(Exception):
            """The command line is understood."""

        def parsed(*_, **__):
            raise Parsed

        for what_follows in ("search", "with_change"):
            self.monkeypatch.setattr(plan.search, what_follows, parsed)
        with pytest.raises(Parsed):
            plan.main(arguments)

    def _caption_scores(self, arguments: list[str]) -> None:
        class Parsed(Exception):
            """The command line is understood."""

        def parsed(*_):
            raise Parsed

        self.monkeypatch.setattr(caption_scores, "read_candidates", parsed)
        with pytest.raises(Parsed):
            caption_scores.main(arguments)

    def _script(self, script: str, arguments: list[str]) -> None:
        assert (ROOT / script).is_file(), f"{script}: no such file"
        spec = importlib.util.spec_from_file_location(f"documented_{Path(script).stem}", ROOT / script)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        self.monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for annotations
        spec.loader.exec_module(module)
        assert arguments == [] or hasattr(module, "_run"), f"{script} takes no arguments"
        self.monkeypatch.setattr(module, "_run", lambda arguments: 0, raising=False)
        self.monkeypatch.setattr(sys, "argv", [script, *arguments])
        if arguments:
            assert module.main() == 0

    def _install(self, arguments: list[str]) -> None:
        for name in re.findall(r"\[([\w,]+)\]", " ".join(a for a in arguments if a.startswith((".", "vlm_jax", "git+")))):
            for extra in name.split(","):
                assert extra in PROJECT["project"]["optional-dependencies"], f"{extra}: no such extra"

    def _pytest(self, arguments: list[str]) -> None:
        words = iter(arguments)
        for word in words:
            if word == "-m":
                markers = {m.partition(":")[0] for m in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
                unknown = set(re.findall(r"\w+", next(words))) - markers - {"and", "or", "not"}
                assert not unknown, f"{unknown}: no such marker"
            elif word == "-n":
                assert next(words).isdecimal() and _requires("dev", "pytest-xdist")
            elif word.startswith("-"):
                assert word in ("-q", "-x", "-v", "-s", "--lf"), f"{word}: not a flag that documents show"
            else:
                assert (ROOT / word.partition("::")[0]).exists(), f"{word}: no such test"

    def _variable(self, name: str) -> None:
        if name.startswith("VLM_JAX"):
            sources = [*(ROOT / "vlm_jax").rglob("*.py"), ROOT / "tests" / "conftest.py"]
            assert any(f'"{name}"' in path.read_text() for path in sources), f"{name}: nothing reads it"
        else:
            assert name.startswith(("JAX_", "XLA_", "CI")), f"{name}: not a variable that documents show"


def _requires(extra: str, package: str) -> bool:
    return any(re.match(rf"{package}\b(?!-)", r) for r in PROJECT["project"]["optional-dependencies"][extra])


def test_runs_of_earlier_commands_keep_their_configuration(monkeypatch):
    monkeypatch.chdir(ROOT)
    checker = Checker(monkeypatch, "")
    checker.check("python -m vlm_jax.train configs/demo.py --steps 7 --workdir runs/seven")
    demo, _ = configs.load_recipe(str(ROOT / "configs" / "demo.py"))
    assert checker.runs["runs/seven"] == [dataclasses.replace(demo, steps=7, workdir="runs/seven")]
    checker.check("python -m vlm_jax.evaluate --checkpoint runs/seven/checkpoints/7 --tasks relations")
