"""What must hold after a chaos run. Pure: histories in, violations out; an empty list means that it held.

Driven by `tests.chaos.cluster_rounds`. Every checker is shown to fail on a planted violation by its unit tests.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from storage.frames import EntryKind, ObjectKind
from tests.chaos.history import GONE, UNCERTAIN, Found, KeyHistory, KeyState, Outcome, Row, Seen, Sent
from tests.chaos.wgl import Model, Operation, TooManySteps, is_linearizable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tests.chaos.logobjects import LogEntry, ObjectFacts

EXAMPLES_MAX: Final = 5


def rows_exactly_once(sent: Mapping[Row, Sent], found: Iterable[Found]) -> list[str]:
    """Acknowledged rows are there once with their values, refused ones are not, unknown ones are at most once."""
    standing: dict[Row, int] = {}
    bad: dict[str, list[object]] = {}
    for row, value in found:
        if row in standing:
            bad.setdefault("rows are there twice", []).append(row)
        standing[row] = value
        known = sent.get(row)
        if known is None:
            bad.setdefault("rows are there that nobody sent", []).append((row, value))
        elif known.outcome is Outcome.REFUSED:
            bad.setdefault("rows are there that were refused", []).append(row)
        elif known.value != value:
            bad.setdefault("rows have another value", []).append((row, known.value, value))
    lost = [row for row, known in sent.items() if known.outcome is Outcome.ACKNOWLEDGED and row not in standing]
    if lost:
        bad["acknowledged rows are lost"] = list(lost)
    return _told(bad)


def changes_hold(wanted: Mapping[Row, int], found: Iterable[Found]) -> list[str]:
    """What was deleted is not there, what was not is there once with its value."""
    standing: dict[Row, int] = {}
    bad: dict[str, list[object]] = {}
    for row, value in found:
        if row in standing:
            bad.setdefault("rows are there twice", []).append(row)
        standing[row] = value
        known = wanted.get(row)
        if known is None:
            bad.setdefault("rows are there that nobody sent", []).append((row, value))
        elif known == GONE:
            bad.setdefault("deleted rows are there", []).append((row, value))
        elif known not in (UNCERTAIN, value):
            bad.setdefault("rows have another value", []).append((row, known, value))
    lost = [row for row, known in wanted.items() if known not in (GONE, UNCERTAIN) and row not in standing]
    if lost:
        bad["rows that were not deleted are lost"] = list(lost)
    return _told(bad)


def view_says(wanted: Mapping[Row, int], found: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a materialized view has of these rows, by ``half``: how many there are, and the sum of their values."""
    counted: Counter[str] = Counter()
    summed: Counter[str] = Counter()
    for row, value in wanted.items():
        if value != GONE:
            counted[f"h{row.number % 2}"] += 1
            summed[f"h{row.number % 2}"] += value
    shown = sorted((row["half"], row["rows"], row["total"]) for row in found)
    right = sorted((half, counted[half], summed[half]) for half in counted)
    return [] if shown == right else [f"a view says {shown}, its rows are {right}"]


def found_of(table: str, row: Mapping[str, Any]) -> Found:
    """A row of a result that has ``client``, ``n`` and ``v``."""
    return Found(Row(table, int(row["client"][1:]), row["n"]), row["v"])


def keys_newest(histories: Mapping[str, KeyHistory], found: Iterable[KeyState]) -> list[str]:
    """Each key has the last acknowledged rewrite, or the unknown one after it; each field its newest value."""
    states: dict[str, KeyState] = {}
    bad: dict[str, list[object]] = {}
    for state in found:
        if state.key in states:
            bad.setdefault("keys are there twice", []).append(state.key)
        states[state.key] = state
        history = histories.get(state.key)
        if history is None:
            bad.setdefault("keys are there that nobody sent", []).append(state)
            continue
        if state.n != history.acknowledged and state.n != history.unknown:
            bad.setdefault("keys have not their newest value", []).append((state, history.acknowledged))
        if (state.a, state.b) != patched(state.n):
            bad.setdefault("fields have not their newest value", []).append((state, patched(state.n)))
    lost = [key for key, history in histories.items() if history.acknowledged >= 0 and key not in states]
    if lost:
        bad["acknowledged keys are lost"] = list(lost)
    return _told(bad)


def patched(n: int) -> tuple[int | None, int | None]:
    """What the fields a (even) and b (odd) hold after the rewrites 0..n of a key."""
    even, odd = (n, n - 1) if n % 2 == 0 else (n - 1, n)
    return even, odd if odd >= 0 else None


def read_your_write(where: str, wanted: Mapping[Row, int], found: Iterable[Found]) -> list[str]:
    """What was just acknowledged is there, once, with its values."""
    counted = Counter(found)
    missing = [row for row, value in wanted.items() if not counted[Found(row, value)]]
    doubled = [row for row, value in wanted.items() if counted[Found(row, value)] > 1]
    bad: dict[str, list[object]] = {}
    if missing:
        bad[f"acknowledged rows are not seen through {where}"] = list(missing)
    if doubled:
        bad[f"acknowledged rows are seen twice through {where}"] = list(doubled)
    return _told(bad)


def never_back(seen: Iterable[Seen]) -> list[str]:
    """What a reader saw of one thing only grows, from one of its reads to the next."""
    newest: dict[tuple[int, str], tuple[int, ...]] = {}
    back: list[object] = []
    for reader, what, values in seen:
        before = newest.get((reader, what), values)
        if any(now < then for now, then in zip(values, before, strict=True)):
            back.append((f"reader {reader}", what, before, values))
        newest[reader, what] = values
    return _told({"reads went back": back} if back else {})


def revisions_never_back(revisions: Iterable[tuple[str, int]]) -> list[str]:
    """The Catalog's Revision at one node only grows, also over its restarts."""
    return never_back(Seen(0, node, (revision,)) for node, revision in revisions)


def stands_for_ever(before: Collection[Row], found: Collection[Row]) -> list[str]:
    """What stood at one check stands at the next, also when its writer never heard of an acknowledgement."""
    gone = sorted(set(before) - set(found))
    return _told({"rows stood and are gone": list(gone)} if gone else {})


def _exists_step(state: bool, operation: Operation) -> bool | None:
    """A database's name: create, drop and list."""
    call, result = operation.call, operation.result
    if call == "create":
        return True if result is None or (result == "ok") != state else None
    if call == "drop":
        return False if result is None or (result == "ok") == state else None
    assert call == "list", call
    return state if result is None or (result == "there") == state else None


NAME_MODEL: Final = Model(False, _exists_step)
"""create: ok or exists; drop: ok or missing; list: there or missing; None for an unknown outcome."""


def schema_linearizable(histories: Mapping[str, Sequence[Operation]]) -> list[str]:
    """Creating, dropping and listing one name by many clients through many nodes has one order."""
    bad = []
    for name, operations in histories.items():
        try:
            if not is_linearizable(operations, NAME_MODEL):
                told = "; ".join(_call(operation) for operation in sorted(operations, key=lambda o: o.start))
                bad.append(f"database name {name} has no order that explains: {told}")
        except TooManySteps as error:
            bad.append(f"database name {name}: {error}")
    return bad


def _call(operation: Operation) -> str:
    return f"c{operation.client} [{operation.start:.3f}, {operation.end:.3f}] {operation.call} {operation.result}"


def epochs_never_interleave(facts: Iterable[ObjectFacts]) -> list[str]:
    """Objects between two opens of a Log carry the epoch of the lower one (LOG L1, L9, L11)."""
    bad: dict[str, list[object]] = {}
    epoch: dict[int, int] = {}
    for fact in sorted(facts, key=lambda fact: (fact.log_id, fact.sequence)):
        if fact.kind is ObjectKind.OPEN:
            epoch[fact.log_id] = fact.sequence
        if fact.epoch != epoch.get(fact.log_id):
            bad.setdefault("objects carry another epoch than the open below them", []).append(fact)
    return _told(bad)


def offsets_without_gap(entries: Iterable[LogEntry]) -> list[str]:
    """Rows of a partition have consecutive offsets from object to object, wherever no object is missing between."""
    bad: dict[str, list[object]] = {}
    following: dict[tuple[int, int, int], int] = {}
    last: dict[int, int] = {}
    for entry in sorted(entries, key=lambda entry: (entry.log_id, entry.sequence, entry.place)):
        if entry.sequence > last.get(entry.log_id, entry.sequence) + 1:  # objects were collected: begin anew
            following = {place: offset for place, offset in following.items() if place[0] != entry.log_id}
        last[entry.log_id] = entry.sequence
        if entry.kind not in (EntryKind.ROWS, EntryKind.DELETE):
            continue
        place = (entry.log_id, entry.table_id, entry.partition)
        expected = following.get(place, entry.base_offset)
        if entry.base_offset != expected:
            what = "offsets are given twice" if entry.base_offset < expected else "offsets are left out"
            bad.setdefault(what, []).append((entry, expected))
        following[place] = entry.base_offset + entry.offset_count
    return _told(bad)


def write_ids_once(entries: Iterable[LogEntry]) -> list[str]:
    """No write id stands in two entries of one Log (LOG L7)."""
    seen: dict[tuple[int, bytes, int, int, int, int], LogEntry] = {}
    twice: list[object] = []
    for entry in entries:
        if entry.write_id.kind == 0:
            continue
        identity = (entry.log_id, entry.write_id.writer, entry.write_id.epoch, entry.write_id.sequence,
                    entry.table_id, entry.partition)  # fmt: skip
        other = seen.setdefault(identity, entry)
        if (other.sequence, other.place) != (entry.sequence, entry.place):
            twice.append((other, entry))
    return _told({"write ids stand twice": twice} if twice else {})


def faults_fired(fired: Mapping[str, int], wanted: Collection[str]) -> list[str]:
    """A run in which a wanted fault never fired, or none at all, has shown nothing."""
    if not any(fired.values()):
        return ["no fault fired: the run has shown nothing"]
    missing = sorted(kind for kind in wanted if not fired.get(kind))
    return [f"faults never fired: {', '.join(missing)}"] if missing else []


def enough_was_done(rows_acknowledged: int, read_backs: int, changes: int, views: int, rounds: int) -> list[str]:
    """A run in which the clients did next to nothing has shown nothing."""
    bad = []
    if rows_acknowledged < 20 * rounds:
        bad.append(f"only {rows_acknowledged} rows were acknowledged in {rounds} rounds")
    if read_backs < rounds:
        bad.append(f"only {read_backs} writes were read back in {rounds} rounds")
    if views < rounds:
        bad.append(f"only {views} answers of a materialized view were compared in {rounds} rounds")
    if changes < rounds:
        bad.append(f"only {changes} deletes and updates were acknowledged in {rounds} rounds")
    return bad


def _told(bad: Mapping[str, Sequence[object]]) -> list[str]:
    """One line for each kind of violation, with how many and the first examples."""
    return [
        f"{len(examples)} {what}, e.g. {'; '.join(str(example) for example in examples[:EXAMPLES_MAX])}"
        for what, examples in bad.items()
    ]
