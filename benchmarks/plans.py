"""Compiles the recipes for pods for their topologies, on this machine and without a TPU, and keeps what it finds.

    pip install 'jax[tpu]'
    python benchmarks/plans.py

Writes docs/plans.json after every recipe, two to five minutes each on two cores, and prints the table of docs/pods.md. What is there
already from the same version of libtpu is left as it is; --again compiles it anew, --only takes the cases of these keys.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax import config as configs
from vlm_jax import files
from vlm_jax.planning import plan, search, words
from vlm_jax.training import tpu

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "plans.json"


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
)
"""Every recipe on what it is for."""
SEARCHED = tuple(
    Case("siglip_b16_32k", "v5e:16x16", fields)
    for fields in (
        {"remat": "none", "fsdp": 1},
        {"remat": "full", "fsdp": 1},
        {"remat": "names", "fsdp": 1},
        {"remat": "none"},
        {"remat": "full"},
        {"remat": "dots", "fsdp": 1},
        {"remat": "full", "fsdp": 1, "batch_size": 65_536},
    )
)
"""Neighbours of the first: rows beside those of others, and whether the recipe is the best of them."""


BESIDE = (
    ("blocks unrolled, nothing recomputed", 13.2, 282, "siglip_b16_32k v5e:16x16 remat=none fsdp=1"),
    ("scan, everything recomputed", 4.3, 325, "siglip_b16_32k v5e:16x16 remat=full fsdp=1"),
    ("the recipe", None, None, "siglip_b16_32k v5e:16x16"),
    ("the recipe, nothing recomputed", None, None, "siglip_b16_32k v5e:16x16 remat=none"),
    ("65,536 pairs, everything recomputed", 5.8, 775, "siglip_b16_32k v5e:16x16 remat=full fsdp=1 batch_size=65536"),
    ("L/16 at 256 px, everything recomputed", 12.9, 1101, "siglip_l16_256 v5e:16x16"),
    ("So400m/14, everything recomputed", 16.4, 1866, "siglip_so400m14 v5e:16x16"),
)
"""big_vision's step by peak gigabytes and milliseconds of cycles, compiled by us with another libtpu, and the case of ours."""


def compile_case(case: Case) -> plan.Plan:
    """The plan of a case."""
    config, _ = configs.load_recipe(str(ROOT / "configs" / "pods" / f"{case.recipe}.py"))
    return plan.make(search.changed(config, case.fields), case.topology, recipe=case.recipe, fields=case.fields)


def read() -> dict[str, Any]:
    """What is kept, by key."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def markdown(kept: Mapping[str, Any], cases: tuple[Case, ...]) -> str:
    """The cases as a table for docs/pods.md; what was not compiled says so."""
    lines = [
        "| recipe | topology | mesh, remat, chunks | state GB | peak GB | of | GFLOP a pair | at 40 % ms | cycles ms | exchanged MB, ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        row = kept.get(case.key)
        if row is None:
            lines.append(f"| {case.recipe} | {case.topology} | {case.fields or ''} | not recorded | | | | | | |")
            continue
        mesh = " x ".join(str(row["mesh"][axis]) for axis in ("data", "fsdp"))
        peak = f"{row['peak'] / 1e9:.1f}" if row["peak"] else f"does not fit ({row['asked'] / 1e9:.1f})" if row["asked"] else "does not fit"
        exchanged = ""
        if row["collectives"] is not None:
            exchanged = f"{sum(found['bytes'] for found in row['collectives']) / 1e6:,.0f}, {row['exchange_milliseconds']:.0f}"
        cycles = f"{row['compute_milliseconds']:,.0f}" if row["compute_milliseconds"] else ""
        batch = f", {row['batch_size']:,} pairs" if "batch_size" in row["fields"] else ""
        lines.append(
            f"| {row['recipe']} | {row['topology']} | {mesh}, {row['remat']}, {row['microbatches']}{batch} | "
            f"{sum(row['parts'].values()) / 1e9:.2f} | {peak} | {row['memory'] / 1e9:.0f} | {row['flops_per_example'] / 1e9:.0f} | "
            f"{row['roofline_milliseconds']:,.0f} | {cycles} | {exchanged} |"
        )
    return "\n".join(lines)


def beside(kept: Mapping[str, Any]) -> str:
    """Ours beside big_vision's as a table: peak gigabytes and milliseconds of the compiler's cycles."""
    lines = ["| SigLIP on v5e:16x16 | big_vision's | ours: mesh | peak GB | cycles ms |", "|---|---|---|---|---|"]
    for name, peak, milliseconds, key in BESIDE:
        theirs = f"{peak} GB, {milliseconds:,} ms" if peak else ""
        row = kept.get(key)
        if row is None:
            lines.append(f"| {name} | {theirs} | not recorded | | |")
        elif row["peak"] is None:
            asked = f" ({row['asked'] / 1e9:.1f})" if row["asked"] else ""
            lines.append(f"| {name} | {theirs} | {row['mesh']['data']} x {row['mesh']['fsdp']} | does not fit{asked} | |")
        else:
            mesh = f"{row['mesh']['data']} x {row['mesh']['fsdp']}"
            lines.append(f"| {name} | {theirs} | {mesh} | {row['peak'] / 1e9:.1f} | {row['compute_milliseconds']:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="KEY", help="such as 'siglip_b16_32k v4:4x4x4'")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    options = parser.parse_args()
    for case in CASES + SEARCHED:
        kept = read()
        if case.key not in (options.only or [case.key]) or (not options.again and kept.get(case.key, {}).get("compiler") == tpu.compiler()):
            continue
        made = compile_case(case)
        print(words.report(made), flush=True)
        files.write_text(KEPT, json.dumps(dict(sorted((read() | {case.key: plan.to_json(made)}).items())), indent=1) + "\n")
    print(f"\n{markdown(read(), CASES)}\n\n{markdown(read(), SEARCHED)}\n\n{beside(read())}\n\ncompiled, not run\n{KEPT}")


if __name__ == "__main__":
    main()
