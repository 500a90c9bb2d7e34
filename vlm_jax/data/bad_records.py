"""Bad records: what cannot be used is replaced, counted and logged once; above a share of the examples it stops the run.

A replacement is drawn from the generator of the row that it fills, so it is the same for any number of hosts, workers and threads,
and after a resume; the other rows do not notice.
"""

import collections
import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vlm_jax import errors, files
from vlm_jax.data import records

FIELD = "bad_records"
"""Of a row with something bad: BadRecords by part of the stream, "" where it has no parts; taken off before rows become a batch."""
ENOUGH = 20
"""Bad examples before their share is judged, if any are allowed."""
_DEVIATIONS = 4
"""Standard deviations that the count may lie above the share: a sample of data with exactly that share passes."""
_ATTEMPTS = 100
_SHOWN = 3
_REASONS = 20
"""Kept apart, by stream."""
_LONGEST = 120
"""Characters of a reason in an account."""
_NUMBER = re.compile(r"\d[\d,.]*")


@dataclasses.dataclass(frozen=True)
class Allowance:
    """How much of what is read may be bad."""

    share: float
    per_example: float = 1.0
    """Records in an example on average: below 1 for a part of a mixture, the images of a row of pages."""


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used."""

    record: int
    """Its index in the source."""
    where: str
    """Shard and key, or shard and place."""
    key: str
    """Its own key; empty where that cannot be read."""
    reason: str
    instead: str = "another takes its place"
    """What becomes of the example."""


class Records(Protocol):
    """What a row may be made of, such as a source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    def where(self, index: int, /) -> str: ...


def replaced(
    source: Records, index: int, load: Callable[[dict[str, Any], int], dict[str, Any]], rng: np.random.Generator
) -> dict[str, Any]:
    """The row of a record, or of the first usable one of those drawn in its place, then with a BadRecord of no part in FIELD.

    Raises:
      RecordError: a hundred others cannot be used either.
    """
    try:
        return load(source[index], index)
    except records.RecordError as error:
        bad = _described(source, index, error)
    for _ in range(_ATTEMPTS):
        other = int(rng.integers(len(source)))
        try:
            return load(source[other], other) | {FIELD: {"": (bad,)}}
        except records.RecordError:
            continue
    raise records.RecordError(f"{bad.where}: {bad.reason}; nor can {_ATTEMPTS} others be used that were drawn in its place")


class Account:
    """Counts the bad examples among those that this process fed, by stream, and logs each record once."""

    def __init__(self, shares: Mapping[str, float], rows: Mapping[str, float]):
        """
        Args:
          shares: of the examples of a stream that may be bad.
          rows: of a batch that this process feeds, by stream; on average, where that varies.
        """
        self._shares, self._rows = dict(shares), dict(rows)
        self._log: Path | None = None
        self._logged: set[tuple[str, int, str]] = set()
        self._first: dict[str, list[str]] = {name: [] for name in rows}
        self._warned = False
        self.set_state(0, {})

    @property
    def count(self) -> int:
        """Examples that were replaced."""
        return sum(self._bad.values())

    def log_to(self, path: Path) -> None:
        """Logs to a file from now on; what it names already is not named again."""
        self._log, self._logged = path, set()
        lines = path.read_text().splitlines() if path.is_file() else []
        rows = [row for row in map(_parsed, lines) if row is not None]
        if len(rows) < len(lines):  # a crash cut the last one off
            files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        for row in rows:
            self._logged.add((row["stream"], row["record"], row.get("where", "")))

    def add(self, step: int, bad: Sequence[tuple[str, int, BadRecord]]) -> None:
        """Counts the next batch; `bad` has stream and row of those that were replaced in it.

        Raises:
          InputError: more than the share.
        """
        for name, rows in self._rows.items():
            self._seen[name] += rows
        if not bad:
            return
        lines = []
        for name, row, record in bad:
            self._bad[name] += 1
            self._seen[name] = max(self._seen[name], self._bad[name])  # where the rows are an average
            self._reasons[name][_kind(record.reason, self._reasons[name])] += 1
            if len(self._first[name]) < _SHOWN:
                self._first[name].append(f"{record.where}: {record.reason}")
            if (name, record.record, record.where) not in self._logged:
                self._logged.add((name, record.record, record.where))
                lines.append(json.dumps({"stream": name, **dataclasses.asdict(record), "step": step + 1, "row": row}) + "\n")
        if self._log is not None and lines:
            with self._log.open("a") as file:
                file.writelines(lines)
        for name in self._rows:
            self._check(name)
        if not self._warned:
            self._warned = True
            name, _, record = bad[0]
            logging.getLogger(__name__).warning(
                "bad record in %s: %s: %s; %s%s",
                name, record.where, record.reason, record.instead, f", all are listed in {self._log}" if self._log else "",
            )  # fmt: skip

    def conclude(self) -> None:
        """Says at the end of a run how many examples could not be used, and for which reasons."""
        for name, bad in self._bad.items():
            if bad:
                seen = self._seen[name]
                logging.getLogger(__name__).warning(
                    "bad records of %s: %s of %s examples could not be used: %s", name, f"{bad:,}", f"{seen:,.0f}", self._why(name)
                )

    def state(self) -> dict[str, list[Any]]:
        """Bad examples, how many were seen, and how often for which reason, of the streams that have any."""
        return {name: [bad, round(self._seen[name]), dict(self._reasons[name])] for name, bad in self._bad.items() if bad}

    def set_state(self, step: int, state: Mapping[str, Sequence[Any]]) -> None:
        """Goes on with the counts of `state` after so many batches."""
        self._reasons = {name: collections.Counter(dict(*state.get(name, ())[2:3])) for name in self._rows}
        self._bad = {name: int(state[name][0]) if name in state else 0 for name in self._rows}
        self._seen = {name: int(state[name][1]) if name in state else step * rows for name, rows in self._rows.items()}

    def _check(self, name: str) -> None:
        bad, seen, share = self._bad[name], self._seen[name], self._shares[name]
        allowed = share * seen
        if bad <= allowed + _DEVIATIONS * math.sqrt(allowed) or (share and bad < ENOUGH):
            return
        raise errors.InputError(
            f"data.bad_records {share:g} of {name}: {bad:,} of {seen:,.0f} examples ({bad / seen:.2%}) cannot be used: "
            f"{self._why(name)}; such as {'; '.join(self._first[name])}. Mend the shards, or raise data.bad_records"
            + (f"; {self._log} lists every one" if self._log else "")
        )


    def _why(self, name: str) -> str:
        """Reasons with their counts, the most frequent first."""
        return ", ".join(f"{count:,} x {reason!r}" for reason, count in self._reasons[name].most_common())


def _kind(reason: str, known: Collection[str]) -> str:
    """A reason without its numbers, so that those of many records are the same; one of the first few, or that it is another."""
    kind = _NUMBER.sub("#", reason)[:_LONGEST]
    return kind if kind in known or len(known) < _REASONS else "other reasons"


def _described(source: Records, index: int, error: records.RecordError) -> BadRecord:
    where = source.where(index)
    try:
        key = str(source[index].get("key", ""))
    except records.RecordError:
        key = ""
    return BadRecord(index, where, key, str(error).removeprefix(f"{where}: "))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and {"stream", "record"} <= row.keys() else None
