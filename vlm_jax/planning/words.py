"""Plans as text for a terminal."""

from collections.abc import Sequence

from vlm_jax.planning.plan import Plan

PREFIXES = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
"""Powers of a thousand."""


def report(plan: Plan) -> str:
    """Everything that is known of one plan."""
    compiler = f", libtpu {plan.compiler}" if plan.compiler else ""
    lines = [
        f"{title(plan)}: {plan.how}{compiler}",
        setting(plan),
        "",
        "memory of a device",
        *(f"  {name:40}{scaled(size, 'B'):>9}" for name, size in memory(plan)),
        f"  {'of the chip':38}{scaled(plan.memory, 'B'):>9}",
        f"  {verdict(plan)}",
    ]
    if plan.whole:
        lines += ["", "held whole by every device although larger than 1 MB:", *(f"  {name}" for name in plan.whole)]
    elif plan.mesh["fsdp"] * plan.mesh["model"] > 1:
        lines += ["", "no array larger than 1 MB is held whole by every device"]
    lines += ["", "arithmetic", *(f"  {name:40}{value:>9}{remark}" for name, value, remark in arithmetic(plan))]
    if plan.collectives is not None:
        lines += ["", "exchanges of a step, on one device", *collectives(plan)]
    if plan.compile_seconds is not None:
        lines += ["", f"compiled in {plan.compile_seconds:.0f} s"]
    if plan.note:
        lines += [plan.note]
    return "\n".join(lines)


def title(plan: Plan) -> str:
    """What is planned, and on what."""
    return f"{plan.recipe} on {f'{plan.slices} slices of ' if plan.slices > 1 else ''}{plan.topology}"


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
    asked = f": it would take {scaled(plan.asked, 'B')}" if plan.asked else ""
    return f"it does not fit{asked}" + (f"; it fits with {plan.change}" if plan.change else "")


def arithmetic(plan: Plan) -> list[tuple[str, str, str]]:
    """Lines of operations and times, each with a remark."""
    lines = [
        ("FLOPs an example, forward and backward", scaled(plan.flops_per_example, ""), ""),
        ("  with what the towers do again", scaled(plan.executed_per_example, ""), ""),
        (f"roofline at {plan.efficiency:.0%} of the peak", milliseconds(plan.roofline_milliseconds), " a step"),
    ]
    if plan.compute_milliseconds is not None and plan.exchange_milliseconds is not None:
        lines += [
            ("compiler's cycles, to rank with", milliseconds(plan.compute_milliseconds), ", without exchanges"),
            ("exchanges at the links' speed", milliseconds(plan.exchange_milliseconds), ", one after the other"),
        ]
    return lines


def collectives(plan: Plan) -> list[str]:
    """Lines of what is exchanged, by kind and mesh axes."""
    if not plan.collectives:
        return ["  none"]
    return [
        f"  {found.kind:20} {' + '.join(found.axes) or 'one device':14} {found.count:5} x {scaled(found.bytes, 'B'):>9} "
        f"{milliseconds(found.milliseconds):>9}"
        for found in plan.collectives
    ]


def setting(plan: Plan) -> str:
    """What was compiled, in one line."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    together = "a device" if plan.mesh["model"] == 1 else f"for {plan.mesh['model']} devices"
    return (
        f"{plan.devices} {'device' if plan.devices == 1 else 'devices'} ({mesh}), "
        f"batch {plan.batch_size:,} ({plan.batch_size * plan.mesh['model'] // plan.devices:,} {together}), "
        f"{plan.microbatches} {'chunk' if plan.microbatches == 1 else 'chunks'}, remat {plan.remat}, {plan.precision}"
    )


def cells(plan: Plan) -> tuple[str, ...]:
    """A variant in a table: mesh, remat, chunks, batch, memory, estimated time of a step and of an example."""
    size = plan.peak or plan.asked
    return (
        " x ".join(map(str, plan.mesh.values())),
        plan.remat,
        str(plan.microbatches),
        f"{plan.batch_size:,}",
        scaled(size, "B") if size else "?",
        milliseconds(plan.milliseconds) if plan.peak else "",
        milliseconds(plan.microseconds_per_example / 1e3) if plan.peak else "",
    )


def table(plans: Sequence[Plan]) -> str:
    """Variants side by side, in the order that they come in."""
    form = "{:2}{:20} {:8} {:>6} {:>9} {:>9} {:>9} {:>10} {:>5}"
    head = form.format("", "data x fsdp x model", "remat", "chunks", "batch", "memory", "estimated", "an example", "fits")
    lines = [form.format("" if plan.fields else "*", *cells(plan), "yes" if plan.fits else "no") for plan in plans]
    return "\n".join([head, *lines, "*: as the recipe has it"])


def scaled(value: float, unit: str) -> str:
    """Three digits and the prefix that goes with them: 5.17 GB, 226 ms."""
    mantissa, exponent = f"{value:.2e}".split("e")
    power = int(exponent) // 3
    above = int(exponent) - 3 * power
    return f"{float(mantissa) * 10**above:.{2 - above}f} {PREFIXES[power]}{unit}".rstrip()


def milliseconds(value: float) -> str:
    """A time given in milliseconds, with the unit that suits it."""
    return scaled(value / 1e3, "s")
