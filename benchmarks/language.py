"""What the cross-entropy over a large vocabulary takes, compiled on this machine for its CPU and for TPUs, and never run.

    pip install 'jax[tpu]'
    python benchmarks/language.py

Prints and keeps (docs/language.json) for the formula and for blocks of words what a device holds beside the head and its gradient, value
and all gradients included, and what it exchanges: 128 x 64 tokens a device, width 768, 262,144 words, float32. Some minutes on two cores.

Goal: 1 GB.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

from vlm_jax.losses import language
from vlm_jax.training import hlo, tpu

P = jax.P
DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXTS, TOKENS, WIDTH, WORDS = 128, 64, 768, 262_144
CPU = "cpu"
CASES = (("formula", CPU, (1, 1, 1)), ("blocks", CPU, (1, 1, 1)), ("blocks", "v5e:2x4", (8, 1, 1)))


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled loss with its gradients."""

    form: str
    topology: str
    mesh: tuple[int, int, int]
    megabytes: float
    """Of a device at the high-water mark, beside its part of the head and of the gradient."""
    reduced_megabytes: float
    """Of the results of all-reduces on one device."""


def formula(hidden, head, labels, weights):
    """The plain cross-entropy."""
    of_label = jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), labels[..., None], -1)[..., 0]
    return -jnp.sum(of_label * weights) / weights.sum()


def blocks(hidden, head, labels, weights):
    """Ours."""
    total, weight = language.cross_entropy(hidden, head, labels, weights)
    return total / weight


def measure(form: str, topology: str, shape: tuple[int, int, int]) -> Row:
    """Compiles one of them."""
    devices = jax.devices(CPU)[:1] if topology == CPU else tpu.devices(topology)
    mesh = jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3, devices=devices)
    rows, words = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P(None, ("model", "fsdp")))
    texts = TEXTS * shape[0] * shape[1]
    arguments = [
        jax.ShapeDtypeStruct((texts, TOKENS, WIDTH), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((WIDTH, WORDS), jnp.float32, sharding=words),
        jax.ShapeDtypeStruct((texts, TOKENS), jnp.int32, sharding=rows),
        jax.ShapeDtypeStruct((texts, TOKENS), jnp.float32, sharding=rows),
    ]
    fn = jax.value_and_grad({"formula": formula, "blocks": blocks}[form], (0, 1))
    with jax.set_mesh(mesh):
        compiled = jax.jit(fn, out_shardings=(None, (rows, words))).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    kept = 2 * 4 * WIDTH * WORDS // (shape[1] * shape[2])
    reduced = hlo.read(compiled.as_text()).collectives.get("all-reduce", hlo.Traffic())
    return Row(form, topology, shape, round((whole - kept) / 1e6, 1), round(reduced.bytes / 1e6, 1))


def markdown(rows: list[Row]) -> str:
    """The rows as a table for docs/language.md."""
    lines = ["| form | devices | mesh (data, fsdp, model) | MB beside the head and its gradient | MB reduced |", "|---|---|---|---|---|"]
    for row in rows:
        reduced = f"{row.reduced_megabytes:,.0f}" if row.topology != CPU else "-"
        lines.append(f"| {row.form} | {row.topology} | {', '.join(map(str, row.mesh))} | {row.megabytes:,.0f} | {reduced} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for language.json")
    out = parser.parse_args().out
    rows = []
    for case in CASES:
        rows.append(measure(*case))
        print(rows[-1], flush=True)
    print(f"\n{markdown(rows)}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "language.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    print(out / "language.json")


if __name__ == "__main__":
    main()
