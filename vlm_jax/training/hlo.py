"""What a compiled program does, read from XLA's own text: collectives and the compiler's cycles, loops counted as often as they run."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
_BYTES = {"pred": 1, "bf16": 2}
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{\s*$")
_NUMBERS = r"([\d,]+)"
_COUNT = rf"\[{_NUMBERS}\](?:T\({_NUMBERS}\))?"
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind."""

    count: int = 0
    """How often they run in one call of the program."""
    bytes: float = 0
    """Of their results on one device."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One collective of the program."""

    kind: str
    """Such as `all-gather`."""
    count: int
    """How often it runs in one call of the program."""
    bytes: float
    """Of all its results on one device."""
    groups: tuple[tuple[int, ...], ...]
    """Devices that exchange with one another, by their place in the mesh; of a permutation, sender and receiver. Empty: all."""

    def axes(self, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """The mesh axes along which it runs.

        Args:
          sizes: of the mesh, by axis, in order.
        """
        shape = tuple(sizes.values())
        groups = self.groups or (tuple(range(math.prod(shape))),)
        crossed = np.zeros(len(shape), bool)
        for group in groups:
            places = np.array(np.unravel_index(group, shape))
            crossed |= (places != places[:, :1]).any(axis=1)
        return tuple(name for name, found in zip(sizes, crossed, strict=True) if found)


@dataclasses.dataclass(frozen=True)
class Program:
    """What one call of a program does on one device."""

    collectives: dict[str, Traffic]
    """By kind, such as `all-gather`."""
    cycles: int
    """Estimated by the compiler (TPU only), without collectives and custom calls: good to rank programs of one compiler with."""
    loops: tuple[int, ...]
    """Trips of every loop."""
    exchanges: tuple[Exchange, ...] = ()
    """The collectives one by one."""


@dataclasses.dataclass(frozen=True)
class _Operation:
    name: str
    kind: str
    type: str
    rest: str

    def called(self) -> list[str]:
        """Names of the computations that run once when this one runs."""
        names = re.findall(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)", self.rest)
        for group in re.findall(r"branch_computations=\{([^}]*)\}", self.rest):
            names += [name.strip().lstrip("%") for name in group.split(",")]
        return names


def read(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation, or a loop whose number of trips is not written in it.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError("the text holds no ENTRY computation: pass the text of a compiled program")
    traffic, cycles, loops, seen, exchanges = {}, 0, [], set(), []
    for operation, times, fused in _walk(computations, entry, 1, loops):
        found = re.search(r'"estimated_cycles":"(\d+)"', operation.rest)
        cycles += times * int(found[1]) if found else 0
        kind = operation.kind.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        if fused:
            # The fusions that start, cover and end an asynchronous collective each write it down.
            identity = (kind, *re.findall(r'channel_id=\d+|op_name="[^"]*"', operation.rest))
            if identity in seen:
                continue
            seen.add(identity)
        exchange = Exchange(kind, times, times * _result_bytes(operation), _groups(operation.rest))
        before = traffic.get(kind, Traffic())
        traffic[kind] = Traffic(before.count + exchange.count, before.bytes + exchange.bytes)
        exchanges.append(exchange)
    return Program(traffic, cycles, tuple(loops), tuple(exchanges))


def _parse(text: str) -> tuple[dict[str, list[_Operation]], str | None]:
    """Operations by computation, and the name of the entry."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        operation = _OPERATION.match(line)
        if operation and current is not None:
            kind_of, rest = _split_type(operation["rest"])
            kind = re.match(r"[\w\-]+", rest)
            current.append(_Operation(operation["name"], kind[0] if kind else "", kind_of, rest))
        elif not line[:1].isspace() and not line.startswith("HloModule") and (header := _COMPUTATION.match(line)):
            current = computations[header["name"]] = []
            entry = header["name"] if header["entry"] else entry
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    """The type of a result, perhaps a tuple, and what follows."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "({") - (letter in ")}")
        if letter == " " and depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def _walk(computations, name: str, times: int, loops: list[int], fused: bool = False) -> Iterator[tuple[_Operation, int, bool]]:
    """Every operation, how often it runs, and whether within a fusion; loops are noted on the way."""
    for operation in computations.get(name, ()):
        yield operation, times, fused
        if operation.kind == "while":
            trips = _trips(computations, operation)
            loops.append(trips)
            body = re.search(r"body=%?([\w.\-]+)", operation.rest)
            yield from _walk(computations, body[1] if body else "", times * trips, loops)
        elif operation.kind in ("fusion", "call", "conditional", "async-start"):
            for called in operation.called():
                yield from _walk(computations, called, times, loops, fused or operation.kind == "fusion")


def _trips(computations, loop: _Operation) -> int:
    """Trips of a loop: as the compiler notes them, else the limit that its condition compares with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    names, limits = re.findall(r"condition=%?([\w.\-]+)", loop.rest), []
    for name in names:
        for operation in computations.get(name, ()):
            names += [called for called in operation.called() if called not in names]
            constant = re.match(r"constant\((\d+)\)", operation.rest)
            if constant and re.match(r"[su]32\[\]", operation.type):
                limits.append(int(constant[1]))
    if not limits:
        raise ValueError(f"loop {loop.name}: its number of trips is not written in the program")
    return max(limits)


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    """Groups of a collective: written out, as rows of a reordered count such as [2,4]<=[4,2]T(1,0), or as axes of a mesh of its own.

    The latter is mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}: a reordered count in the shape of the mesh, whose groups run along
    the axes in braces.
    """
    counted = re.search(rf"replica_groups=\[{_NUMBERS}\]<={_COUNT}", rest)
    if counted:
        return _rows(_count(*counted.groups()[1:]).reshape(_numbers(counted[1])))
    meshed = re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_COUNT}\))? \{{([^}}]*)\}}", rest)
    if meshed and ":" not in meshed[4]:  # no part of an axis
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", meshed[1])}
        along = [list(sizes).index(name) for name in re.findall(r"'([^']*)'", meshed[4])]
        places = (_count(meshed[2], meshed[3]) if meshed[2] else np.arange(math.prod(sizes.values()))).reshape(tuple(sizes.values()))
        last = tuple(range(-len(along), 0))
        return _rows(np.moveaxis(places, along, last).reshape(-1, math.prod(places.shape[axis] for axis in along)))
    written = re.search(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d, ]*\},?)*)\}", rest)
    if written:
        return tuple(tuple(_numbers(group)) for group in re.findall(r"\{([\d, ]+)\}", written[1]))
    if "replica_groups=" in rest:
        raise ValueError(f"groups of devices in a form that is not known: {rest[rest.index('replica_groups=') :][:80]}")
    return ()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]


def _count(shape: str, order: str | None) -> np.ndarray:
    counted = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return counted.transpose(_numbers(order)) if order else counted


def _rows(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, groups.tolist()))


def _result_bytes(operation: _Operation) -> float:
    """Bytes of a collective's result. The start of an asynchronous one names operands and results: the largest counts."""
    sizes = [
        math.prod(int(size) for size in dims.split(",") if size) * _width(dtype)
        for dtype, dims in re.findall(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]", operation.type)
    ]
    pairs = operation.kind.endswith("-start") and operation.kind != "all-reduce-start"
    return max(sizes, default=0) if pairs else sum(sizes)


def _width(dtype: str) -> float:
    """Bytes of a number by its name in HLO, such as f32."""
    bits = re.match(r"[a-z]+?(\d+)", dtype)
    return _BYTES.get(dtype) or (int(bits[1]) / 8 if bits else 0)
