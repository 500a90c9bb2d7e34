"""Plans as text for a terminal."""

from collections.abc import Sequence

from vlm_jax.planning.plan import Plan


def report(plan: Plan) -> str:
    """Everything that is known of one plan."""
    slices = f" x {plan.slices} slices" if plan.slices > 1 else ""
    compiler = f", libtpu {plan.compiler}" if plan.compiler else ""
    lines = [
        f"{plan.recipe} on {plan.topology}{slices}: {plan.how}{compiler}",
        setting(plan),
        "",
        "memory of a device",
        *(f"  {name:38}{gigabytes(size)}" for name, size in memory(plan)),
        f"  {'of the chip':38}{gigabytes(plan.memory)}",
        f"  {verdict(plan)}",
    ]
    if plan.whole:
        lines += ["", "held whole by every device although larger than 1 MB:", *(f"  {name}" for name in plan.whole)]
    elif plan.mesh["fsdp"] * plan.mesh["model"] > 1:
        lines += ["", "no array larger than 1 MB is held whole by every device"]
    lines += ["", "arithmetic", *(f"  {name:38}{value}" for name, value in arithmetic(plan))]
    if plan.collectives is not None:
        lines += ["", "exchanges of a step, on one device", *collectives(plan)]
    if plan.compile_seconds is not None:
        lines += ["", f"compiled in {plan.compile_seconds:.0f} s"]
    if plan.note:
        lines += [plan.note]
    return "\n".join(lines)


def memory(plan: Plan) -> list[tuple[str, float]]:
    """Lines of the memory of a device: what is exact, and what the compiler says."""
    lines: list[tuple[str, float]] = [(f"{name}, exact", size) for name, size in plan.parts.items()]
    lines.append(("batch, exact", plan.batch))
    if plan.rest is not None:
        lines.append(("activations, gradients, ..., compiler", plan.rest))
    if plan.peak is not None:
        lines.append(("high-water mark, compiler", plan.peak))
    return lines


def verdict(plan: Plan) -> str:
    """Whether it fits, and what would."""
    if plan.fits:
        return "it fits"
    if plan.fits is None:
        return "the state fits; what a step takes beyond it is not known without the compiler"
    asked = f": it would take {plan.asked / 1e9:.1f} GB" if plan.asked else ""
    return f"it does not fit{asked}" + (f"; it fits with {plan.change}" if plan.change else "")


def arithmetic(plan: Plan) -> list[tuple[str, str]]:
    """Lines of operations and times."""
    lines = [
        ("FLOPs a pair, forward and backward", f"{plan.flops_per_example / 1e9:8.1f} G"),
        ("  with what the towers do again", f"{plan.executed_per_example / 1e9:8.1f} G"),
        (f"roofline at {plan.efficiency:.0%} of the peak", f"{plan.roofline_milliseconds:8.1f} ms a step"),
    ]
    if plan.compute_milliseconds is not None and plan.exchange_milliseconds is not None:
        lines += [
            ("compiler's cycles, to rank with", f"{plan.compute_milliseconds:8.1f} ms, without exchanges"),
            ("exchanges at the links' speed", f"{plan.exchange_milliseconds:8.1f} ms, one after the other"),
        ]
    return lines


def collectives(plan: Plan) -> list[str]:
    """Lines of what is exchanged, by kind and mesh axes."""
    if not plan.collectives:
        return ["  none"]
    return [
        f"  {found.kind:20} {' + '.join(found.axes) or 'one device':14} {found.count:5} x, {found.bytes / 1e6:9.1f} MB, "
        f"{found.milliseconds:7.2f} ms"
        for found in plan.collectives
    ]


def setting(plan: Plan) -> str:
    """What was compiled, in one line."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    return (
        f"{plan.devices} devices ({mesh}), batch {plan.batch_size:,} ({plan.batch_size // plan.devices:,} a device), "
        f"{plan.microbatches} {'chunk' if plan.microbatches == 1 else 'chunks'}, remat {plan.remat}, {plan.precision}"
    )


def cells(plan: Plan) -> tuple[str, ...]:
    """A variant in a table: mesh, remat, chunks, batch, memory, estimated time of a step and of a pair."""
    size = plan.peak or plan.asked
    return (
        " x ".join(map(str, plan.mesh.values())),
        plan.remat,
        str(plan.microbatches),
        f"{plan.batch_size:,}",
        f"{size / 1e9:.1f}" if size else "?",
        f"{plan.milliseconds:.0f}" if plan.peak else "",
        f"{plan.microseconds_per_example:.2f}" if plan.peak else "",
    )


def table(plans: Sequence[Plan]) -> str:
    """Variants side by side, in the order that they come in."""
    form = "{:2}{:20} {:8} {:>6} {:>9} {:>9} {:>12} {:>9} {:>5}"
    head = form.format("", "data x fsdp x model", "remat", "chunks", "batch", "memory GB", "estimated ms", "us a pair", "fits")
    lines = [form.format("" if plan.fields else "*", *cells(plan), "yes" if plan.fits else "no") for plan in plans]
    return "\n".join([head, *lines, "*: as the recipe has it"])


def gigabytes(size: float) -> str:
    """Bytes as a column of gigabytes (1e9)."""
    return f"{size / 1e9:10.3f} GB"


