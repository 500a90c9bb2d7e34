"""What every form of the contrastive losses takes on a TPU pod, compiled for it on this machine and never run.

    pip install 'jax[tpu]'
    python benchmarks/contrastive.py

Prints and keeps (docs/contrastive.json, docs/images/contrastive.png) for each form, by batch size on v5e:16x16 and by
number of chips at 131,072 pairs: the peak bytes of a device, value and gradients included; what it exchanges; and the
compiler's estimate of its arithmetic, which leaves communication out. Six minutes on two cores.

Goals: 1,048,576 pairs within 0.8 GB; 32,768 pairs within 0.30 ms and the formula's peak.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

from vlm_jax.losses import contrastive
from vlm_jax.training import hlo, tpu

P = jax.P
DOCS = Path(__file__).resolve().parents[1] / "docs"
FORMS = ("formula", "gathered", "hybrid", "ring")
POD = "v5e:16x16"
PAIRS = ((32_768, 512), (65_536, 512), (131_072, 512), (262_144, 512), (524_288, 512), (1_048_576, 768))
TOPOLOGIES = ("v5e:2x4", "v5e:4x4", "v5e:8x8", POD)
FORMULA_PAIRS = 262_144
"""Beyond, the compiler needs minutes to find that the formula does not fit."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled loss with its gradients."""

    loss: str
    form: str
    topology: str
    chips: int
    pairs: int
    width: int
    peak_megabytes: float | None
    """None: the compiler says that it does not fit."""
    milliseconds: float | None
    exchanged_megabytes: float | None
    chosen: str
    """What `auto` takes."""


def sides(topology: str) -> list[int]:
    """Chips along data and along fsdp: the sides of the torus."""
    return [int(size) for size in topology.partition(":")[2].split("x")]


def measure(loss: str, form: str, topology: str, pairs: int, width: int) -> Row:
    """Compiles one form for bfloat16 embeddings."""
    devices = tpu.devices(topology)
    shape = sides(topology)
    mesh = jax.make_mesh((*shape, 1), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3, devices=devices)
    chosen = contrastive.choose(pairs, width, shape, 2)
    row = Row(loss, form, topology, len(devices), pairs, width, None, None, None, chosen)
    rows, same = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
    arguments = [jax.ShapeDtypeStruct((pairs, width), jnp.bfloat16, sharding=rows)] * 2
    arguments += [jax.ShapeDtypeStruct((), jnp.float32, sharding=same)] * (1 if loss == "softmax" else 2)
    gradients = tuple(x.sharding for x in arguments)
    fn = jax.value_and_grad(lambda *a: getattr(contrastive, loss)(*a, form=form), tuple(range(len(arguments))))
    with jax.set_mesh(mesh):
        try:
            compiled = jax.jit(fn, out_shardings=(same, gradients)).lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return row
    program = hlo.read(compiled.as_text())
    return dataclasses.replace(
        row,
        peak_megabytes=compiled.memory_analysis().peak_memory_in_bytes / 1e6,
        milliseconds=1e3 * program.cycles / tpu.chip(topology).clock,
        exchanged_megabytes=sum(traffic.bytes for traffic in program.collectives.values()) / 1e6,
    )


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = [f"{'loss':8} {'form':9} {'topology':9} {'pairs':>9} {'width':>5} {'peak MB':>9} {'ms':>8} {'exchanged MB':>13}"]
    for row in rows:
        if row.peak_megabytes is None:
            figures = f"{'does not fit':>9}"
        else:
            figures = f"{row.peak_megabytes:9.1f} {row.milliseconds:8.2f} {row.exchanged_megabytes:13.1f}"
        chosen = "  <- auto" if row.form == row.chosen else ""
        lines.append(f"{row.loss:8} {row.form:9} {row.topology:9} {row.pairs:9,} {row.width:5} {figures}{chosen}")
    return "\n".join(lines)


def markdown(rows: list[Row]) -> str:
    """The rows of the pod as a table for docs/contrastive.md: peak megabytes / milliseconds, in bold what `auto` takes."""
    lines = [f"| pairs | | {' | '.join(FORMS)} |", "|---|---|" + "---|" * len(FORMS)]
    for pairs, width in PAIRS:
        for loss in ("softmax", "sigmoid"):
            cells = []
            for form in FORMS:
                keys = (loss, form, POD, pairs)
                row = next((row for row in rows if (row.loss, row.form, row.topology, row.pairs) == keys), None)
                if row is None or row.peak_megabytes is None:
                    cells.append("-")
                    continue
                figures = f"{row.peak_megabytes:,.{0 if row.peak_megabytes >= 100 else 1}f} / {row.milliseconds:.3g}"
                cells.append(f"**{figures}**" if row.chosen == form else figures)
            name = f"{pairs:,} of width {width}" if loss == "softmax" else ""
            lines.append(f"| {name} | {loss} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chart(rows: list[Row], path: Path) -> None:
    """Memory and time by batch size, memory by number of chips; one row of panels for each loss."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
    colours = dict(zip(FORMS, ("#888888", "#1f77b4", "#2ca02c", "#d62728"), strict=True))
    for line, loss in enumerate(("softmax", "sigmoid")):
        views = (
            ("pairs", "peak_megabytes", "peak megabytes a device, v5e-256", lambda row: row.topology == POD),
            ("pairs", "milliseconds", "milliseconds of arithmetic, v5e-256", lambda row: row.topology == POD),
            ("chips", "peak_megabytes", "peak megabytes a device, 131,072 pairs", lambda row: row.pairs == 131_072),
        )
        for panel, (x, y, title, shown) in zip(panels[line], views, strict=True):
            for form in FORMS:
                points = [row for row in rows if row.loss == loss and row.form == form and shown(row) and row.peak_megabytes]
                points.sort(key=lambda row: getattr(row, x))
                places = [getattr(row, x) for row in points]
                panel.plot(places, [getattr(row, y) for row in points], "o-", color=colours[form], label=form)
                chosen = [row for row in points if row.chosen == form]
                panel.plot(
                    [getattr(row, x) for row in chosen],
                    [getattr(row, y) for row in chosen],
                    "o", markersize=13, markerfacecolor="none", markeredgecolor=colours[form],
                )  # fmt: skip
            ticks = sorted({getattr(row, x) for row in rows if shown(row)})
            panel.set(xscale="log", yscale="log", xlabel=x)
            panel.set_title(f"{loss}: {title}", fontsize=10)
            panel.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 32_768 else str(tick) for tick in ticks], minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), title="circled: what auto takes", loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for contrastive.json and images/contrastive.png")
    out = parser.parse_args().out
    cases = [(POD, pairs, width) for pairs, width in PAIRS]
    cases += [(topology, 131_072, 512) for topology in TOPOLOGIES if topology != POD]
    began, rows = time.perf_counter(), []
    for topology, pairs, width in cases:
        for loss in ("softmax", "sigmoid"):
            for form in FORMS:
                if form != "formula" or pairs <= FORMULA_PAIRS:
                    rows.append(measure(loss, form, topology, pairs, width))
                    print(table(rows[-1:]).splitlines()[1], flush=True)
    print(f"\n{table(rows)}\n\n{markdown(rows)}\n\ncompiled, not run, in {time.perf_counter() - began:.0f} s")
    out.mkdir(parents=True, exist_ok=True)
    (out / "contrastive.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    chart(rows, out / "images" / "contrastive.png")
    print(f"{out / 'contrastive.json'}\n{out / 'images' / 'contrastive.png'}")


if __name__ == "__main__":
    main()
