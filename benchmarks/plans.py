"""Compiles the recipes for pods for their topologies, on this machine and without a TPU, and keeps what it finds.

    pip install 'jax[tpu]'
    python benchmarks/plans.py

Writes docs/plans.json after every case, two to five minutes each on two idle cores, and from it the tables and plans of docs/pods.md.
What is there already from the same version of libtpu is left as it is; --again compiles it anew, --only takes the cases of these keys.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlm_jax import config as configs
from vlm_jax import files
from vlm_jax.planning import plan, search, words
from vlm_jax.training import tpu

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "plans.json"
DOCUMENT = ROOT / "docs" / "pods.md"


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to compile."""

    recipe: str
    topology: str
    fields: search.Fields = dataclasses.field(default_factory=dict)
    """What is other than in the recipe."""

    @property
    def key(self) -> str:
        """Its name in the file."""
        return " ".join([self.recipe, self.topology, *(f"{name}={value}" for name, value in self.fields.items())])


CASES = (
    Case("siglip_b16_32k", "v5e:16x16"),
    Case("siglip_b16_1m", "v5e:16x16"),
    Case("siglip_so400m14", "v5e:16x16"),
    Case("siglip_l16_256", "v5e:16x16"),
    Case("clip_b16_32k", "v5e:16x16"),
    Case("siglip_b16_32k", "v4:4x4x4"),
    Case("clip_b16_32k", "v4:4x4x4"),
    Case("clipa_l16", "v5e:16x16"),
    Case("clipa_l16_finish", "v5e:16x16"),
    Case("lit_b16", "v5e:8x8"),
    Case("coca_b", "v5e:16x16"),
    Case("flamingo_3b", "v5e:16x16"),
)
"""Every recipe on what it is for."""
SEARCHED = (
    *(
        Case("siglip_b16_32k", "v5e:16x16", fields)
        for fields in (
            {"remat": "none", "fsdp": 1},
            {"remat": "dots", "fsdp": 1},
            {"remat": "full", "fsdp": 1},
            {"remat": "names", "fsdp": 1},
            {"remat": "none"},
            {"remat": "full"},
            {"remat": "full", "fsdp": 1, "batch_size": 65_536},
        )
    ),
    Case("siglip_l16_256", "v5e:16x16", {"remat": "names"}),
    Case("siglip_so400m14", "v5e:16x16", {"remat": "names"}),
    Case("clipa_l16", "v5e:16x16", {"fsdp": 1}),
    Case("clipa_l16_finish", "v5e:16x16", {"remat": "names"}),
    Case("lit_b16", "v5e:8x8", {"remat": "none"}),
)
"""Neighbours of the recipes: rows beside those of others, and whether a recipe is the best of them."""
BESIDE = (
    ("nothing recomputed; theirs unrolled", "13.2 GB, 282 ms", "siglip_b16_32k v5e:16x16 remat=none fsdp=1"),
    ("outputs of dense layers kept", "10.5 GB, 340 ms", "siglip_b16_32k v5e:16x16 remat=dots fsdp=1"),
    ("everything recomputed", "4.3 GB, 325 ms", "siglip_b16_32k v5e:16x16 remat=full fsdp=1"),
    ("the recipe", "", "siglip_b16_32k v5e:16x16"),
    ("65,536 pairs, everything recomputed", "5.8 GB, 775 ms", "siglip_b16_32k v5e:16x16 remat=full fsdp=1 batch_size=65536"),
    ("L/16 at 256 px, everything recomputed", "12.9 GB, 1,101 ms", "siglip_l16_256 v5e:16x16"),
    ("So400m/14, everything recomputed", "16.4 GB, 1,866 ms", "siglip_so400m14 v5e:16x16"),
)
"""big_vision's step, compiled with another libtpu: peak memory and time of the cycles, and the case of ours."""
SHOWN = ("siglip_b16_32k v5e:16x16", "siglip_b16_1m v5e:16x16")
"""Plans that the document shows as they are printed."""

Kept = Mapping[str, plan.Plan]


def compile_case(case: Case) -> plan.Plan:
    """The plan of a case."""
    config, _ = configs.load_recipe(str(ROOT / "configs" / "pods" / f"{case.recipe}.py"))
    return plan.make(search.changed(config, case.fields), case.topology, recipe=case.recipe, fields=case.fields)


def read() -> dict[str, plan.Plan]:
    """What is kept, by key."""
    return {key: plan.from_json(row) for key, row in json.loads(KEPT.read_text()).items()} if KEPT.exists() else {}


def keep(key: str, made: plan.Plan) -> None:
    """Writes a plan to the others."""
    rows = {name: plan.to_json(each) for name, each in sorted((read() | {key: made}).items())}
    files.write_text(KEPT, json.dumps(rows, indent=1) + "\n")


def recipes(kept: Kept, cases: Sequence[Case]) -> str:
    """The cases as a table; what was not compiled says so."""
    lines = [
        "| recipe | topology | mesh, remat, chunks | state | peak | of | FLOPs an example | at 40 % | cycles | exchanged |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        if case.key not in kept:
            changed = ", ".join(f"{name} {value}" for name, value in case.fields.items())
            lines.append(f"| {case.recipe} | {case.topology} | {changed} | not recorded | | | | | | |")
            continue
        made = kept[case.key]
        exchanged = ""
        if made.collectives is not None and made.exchange_milliseconds is not None:
            size = sum(found.bytes for found in made.collectives)
            exchanged = f"{words.scaled(size, 'B')}, {words.milliseconds(made.exchange_milliseconds)}"
        batch = f", {made.batch_size:,} pairs" if "batch_size" in made.fields else ""
        cells = (
            made.recipe,
            made.topology,
            f"{_mesh(made)}, {made.remat}, {made.microbatches}{batch}",
            words.scaled(made.state, "B"),
            _peak(made),
            words.scaled(made.memory, "B"),
            words.scaled(made.flops_per_example, ""),
            words.milliseconds(made.roofline_milliseconds),
            words.milliseconds(made.compute_milliseconds) if made.compute_milliseconds else "",
            exchanged,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def beside(kept: Kept) -> str:
    """Ours beside big_vision's as a table."""
    lines = ["| SigLIP on v5e:16x16 | big_vision's | ours: mesh | peak | cycles |", "|---|---|---|---|---|"]
    for name, theirs, key in BESIDE:
        made = kept.get(key)
        cycles = words.milliseconds(made.compute_milliseconds) if made and made.compute_milliseconds else ""
        ours = f"{_mesh(made)} | {_peak(made)} | {cycles}" if made else "not recorded | |"
        lines.append(f"| {name} | {theirs} | {ours} |")
    return "\n".join(lines)


def document(text: str, kept: Kept) -> str:
    """The document with what is between its markers made anew."""
    shown = "\n\n".join(f"```text\n{words.report(kept[key])}\n```" for key in SHOWN if key in kept)
    searched = recipes(kept, [case for case in SEARCHED if case.key in kept])
    parts = {"printed": shown, "recipes": recipes(kept, CASES), "beside": beside(kept), "searched": searched}
    for name, made in parts.items():
        marker = f"<!-- {name}: benchmarks/plans.py -->"
        pattern = re.compile(f"{re.escape(marker)}\n.*?\n<!-- end -->", re.DOTALL)
        text = pattern.sub(lambda _, marker=marker, made=made: f"{marker}\n{made}\n<!-- end -->", text)
    return text


def _mesh(made: plan.Plan) -> str:
    return f"{made.mesh['data']} x {made.mesh['fsdp']}"


def _peak(made: plan.Plan) -> str:
    if made.peak:
        return words.scaled(made.peak, "B")
    return f"does not fit ({words.scaled(made.asked, 'B')})" if made.asked else "does not fit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="KEY", help="such as 'siglip_b16_32k v4:4x4x4'")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    options = parser.parse_args()
    known = {case.key for case in CASES + SEARCHED}
    for key in set(options.only or ()) - known:
        parser.error(f"--only: there is no {key!r}; there are\n  " + "\n  ".join(sorted(known)))
    for case in CASES + SEARCHED:
        before = read().get(case.key)
        if case.key not in (options.only or known) or (not options.again and before and before.compiler == tpu.compiler()):
            continue
        made = compile_case(case)
        print(words.report(made), flush=True)
        keep(case.key, made)
        files.write_text(DOCUMENT, document(DOCUMENT.read_text(), read()))
    files.write_text(DOCUMENT, document(DOCUMENT.read_text(), read()))
    print(f"\n{KEPT}\n{DOCUMENT}")


if __name__ == "__main__":
    main()
