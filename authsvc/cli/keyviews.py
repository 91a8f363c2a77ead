"""Keys for people to look at: what happens when, in plain words and local time; a table; a timeline. And as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

from rich.table import Column, Table
from rich.text import Text

from authsvc.cli.shared import local_time, relative, span
from authsvc.drill import Rehearsal
from authsvc.keyreport import Exposure, Step, What, next_step
from authsvc.keyset import KeyRecord, Keyset, Kind, State

_SIGNING_WORDS: Final = {
    What.PUBLISHED: "is published: the standby, which the next rotation uses",
    What.TAKES_OVER: "signs new tokens",
    What.GOES_ON: "goes on signing",
    What.RETIRES: "signs no more; its tokens stay good",
    What.PART_DESTROYED: "its private part is destroyed",
    What.REMOVED: "leaves the JWKS: its last token has ended",
    What.PASSED_OVER: "leaves the JWKS without having signed",
    What.REVOKED: "is revoked: out of the JWKS, tokens under it are refused",
    What.FORGOTTEN: "leaves the manifest",
    What.REWRITTEN: "its private part lies in a new file",
}
_SEALING_WORDS: Final = {
    **_SIGNING_WORDS,
    What.TAKES_OVER: "seals new rows of the side store",
    What.GOES_ON: "goes on sealing",
    What.RETIRES: "seals no more; its rows can be opened",
    What.REMOVED: "opens nothing any more: its last row has ended",
    What.REVOKED: "is revoked and destroyed: nothing opens its rows any more",
}

_INDEX_WORDS: Final = {
    **_SEALING_WORDS,
    What.TAKES_OVER: "hashes openids for the log",
}
_WORDS: Final = {Kind.SIGNING: _SIGNING_WORDS, Kind.SEALING: _SEALING_WORDS, Kind.INDEX: _INDEX_WORDS}

_NEXT_WORDS: Final = {
    What.TAKES_OVER: "takes over",
    What.RETIRES: "retires",
    What.PART_DESTROYED: "private part destroyed",
    What.REMOVED: "removed",
    What.PASSED_OVER: "leaves unused",
    What.FORGOTTEN: "forgotten",
}

TABLE_CHARS: Final = 160  # that it takes to be read with ease
_KID_CHARS: Final = 43  # a kid is typed in full to revoke its key: it is never cut

_GLYPHS: Final = {
    State.PENDING: ("░", "cyan"),
    State.ACTIVE: ("█", "green"),
    State.RETIRING: ("▒", "yellow"),
    State.REMOVED: (" ", ""),
    State.REVOKED: ("×", "red"),
}


def words(step: Step) -> str:
    """What happens, as a sentence that begins with the key."""
    return _WORDS[step.key.kind][step.what]


def steps_table(steps: Sequence[Step], *, now: int) -> Table:
    table = _bare_table("when", "", Column("key", no_wrap=True), "what happens")
    for step in steps:
        at = now if step.at is None else step.at
        table.add_row(local_time(at), relative(max(at, now), now=now), f"{step.key.kind} {step.key.id}", words(step))
    return table


def exposure_table(lines: Sequence[Exposure]) -> Table:
    table = _bare_table("who still accepts it", "for up to", "")
    for line in lines:
        table.add_row(line.who, "no end of its own" if line.seconds is None else span(line.seconds), line.note)
    return table


def keys_table(keyset: Keyset, *, now: int, rotate_every_s: int) -> Table:
    key_column = Column("key", no_wrap=True, min_width=_KID_CHARS)
    table = Table("kind", key_column, "alg", "state", "age", "published", "active since", "verifies until", "next")
    for key in _in_order(keyset, now=now):
        state = key.state(now=now)
        started = key.activate_at if key.activate_at is not None and now >= key.activate_at else None
        table.add_row(
            key.kind.value,
            key.id,
            key.alg,
            Text(_state_word(key, keyset, now=now), style=_GLYPHS[state][1]),
            span(max(now - key.created_at, 0)),
            _short_time(key.publish_at if key.kind is Kind.SIGNING else None),
            _short_time(started),
            _short_time(None if state is State.REVOKED else key.remove_at),
            _next_words(key, keyset, now=now, rotate_every_s=rotate_every_s),
        )
    return table


def keys_list(keyset: Keyset, *, now: int, rotate_every_s: int) -> list[Text]:
    """The same for a terminal that is too narrow for the table."""
    lines = []
    for key in _in_order(keyset, now=now):
        state = _state_word(key, keyset, now=now)
        lines.append(Text(f"{key.kind} {key.id}"))
        lines.append(Text(f"  {state} · {key.alg} · {span(max(now - key.created_at, 0))} old"))
        times = []
        if key.kind is Kind.SIGNING:
            times.append(f"published {_short_time(key.publish_at)}")
        if key.activate_at is not None and now >= key.activate_at:
            times.append(f"active since {_short_time(key.activate_at)}")
        if key.remove_at is not None and key.revoked_at is None:
            times.append(f"verifies until {_short_time(key.remove_at)}")
        following = _next_words(key, keyset, now=now, rotate_every_s=rotate_every_s)
        lines += [Text(f"  {part}") for part in (" · ".join(times), following) if part]
    return lines


def timeline(keyset: Keyset, *, now: int, columns: int) -> list[Text]:
    """A line for each key that is not out, and a ruler; `now` is where the ruler has its mark."""
    keys = [k for k in _in_order(keyset, now=now) if k.kind is not Kind.INDEX and k.state(now=now) in _LEGEND]
    moments = [t for key in keys for t in (key.publish_at, key.activate_at, key.retire_at, key.remove_at) if t]
    start, end = min([*moments, now]), max([*moments, now])
    # Some of the future even where none is decided.
    end = max(end, now + max((now - start) // 4, 60))
    step_s = max(end - start, columns) / columns
    lines = []
    for key in keys:
        line = Text(f"{key.kind:8}{key.id[:8]:9}")
        moments = [start + round(column * step_s) for column in range(columns)]
        states = [None if at < key.publish_at else _state_in(key, at, at + step_s) for at in moments]
        for state, stretch in groupby(states):
            glyph, style = _GLYPHS[state or State.REMOVED]
            line.append(glyph * len(list(stretch)), style=style)
        lines.append(line)
    mark = min(int((now - start) / step_s), columns - 1)
    lines.append(Text(f"{'':17}{'─' * mark}┴{'─' * (columns - mark - 1)}"))
    left, right = local_time(start), local_time(int(end))
    middle = "now".center(7)
    ruler = f"{left}{'':{max(columns - len(left) - len(right), 1)}}{right}"
    at = min(max(mark - 3, len(left)), len(ruler) - len(right) - len(middle))
    lines.append(Text(f"{'':17}{ruler[:at]}{middle}{ruler[at + len(middle) :]}"))
    legend = Text(f"{'':17}")
    for state, word in _LEGEND.items():
        legend.append(_GLYPHS[state][0] * 2, style=_GLYPHS[state][1])
        legend.append(f" {word}   ")
    lines.append(legend)
    return lines


def step_json(step: Step) -> dict[str, Any]:
    return {"at": step.at, "kind": step.key.kind.value, "key": step.key.id, "what": step.what.value}


def exposure_json(line: Exposure) -> dict[str, Any]:
    return {"who": line.who, "seconds": line.seconds, "note": line.note}


def key_json(key: KeyRecord, keyset: Keyset, *, now: int, rotate_every_s: int) -> dict[str, Any]:
    step = next_step(key, keyset, now=now, rotate_every_s=rotate_every_s)
    return {
        "kind": key.kind.value,
        "id": key.id,
        "alg": key.alg,
        "state": key.state(now=now).value,
        "standby": key == keyset.standby(now=now),
        "created_at": key.created_at,
        "publish_at": key.publish_at,
        "activate_at": key.activate_at,
        "retire_at": key.retire_at,
        "remove_at": key.remove_at,
        "part_ends_at": key.part_ends_at(keyset.lifecycle),
        "revoked_at": key.revoked_at,
        "reason": key.reason,
        "next": None if step is None else {"what": step.what.value, "at": step.at},
    }


def rehearsal_json(found: Rehearsal) -> dict[str, Any]:
    return {
        "clean": found.is_clean,
        "rotation_at": found.rotation_at,
        "tokens": found.tokens,
        "verifiers": [
            {
                "name": row.name,
                "within_policy": row.within_policy,
                "refused_by_rotation": row.refused_by_rotation,
                "refused_by_revocation": row.refused_by_revocation,
                "revoked_accepted_s": row.revoked_accepted_s,
            }
            for row in found.rows
        ],
    }


def rehearsal_table(found: Rehearsal) -> Table:
    table = Table(
        "verifier", "within the policy", "refused by the rotation", "refused by the revocation", "accepts a revoked key"
    )
    for row in found.rows:
        table.add_row(
            row.name,
            "yes" if row.within_policy else "no, keeps keys longer",
            str(row.refused_by_rotation),
            str(row.refused_by_revocation),
            "to the end of the rehearsal"
            if row.revoked_accepted_s is None
            else f"for up to {span(row.revoked_accepted_s)}",
        )
    return table


_LEGEND: Final = {
    State.PENDING: "published",
    State.ACTIVE: "signs, seals",
    State.RETIRING: "still good",
    State.REVOKED: "revoked",
}
_ORDER: Final = (State.ACTIVE, State.PENDING, State.RETIRING, State.REMOVED, State.REVOKED)


def _bare_table(*headers: str | Column) -> Table:
    return Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _in_order(keyset: Keyset, *, now: int) -> list[KeyRecord]:
    kinds = list(Kind)
    return sorted(
        keyset.keys, key=lambda key: (kinds.index(key.kind), _ORDER.index(key.state(now=now)), key.publish_at)
    )


def _state_word(key: KeyRecord, keyset: Keyset, *, now: int) -> str:
    state = key.state(now=now)
    if state is not State.PENDING:
        return state.value
    if key == keyset.standby(now=now):
        return "pending (standby)"
    return "pending (passed over)" if key.is_discarded else "pending (named to follow)"


def _next_words(key: KeyRecord, keyset: Keyset, *, now: int, rotate_every_s: int) -> str:
    if key.revoked_at is not None:
        return f"revoked {_short_time(key.revoked_at)}: {key.reason}"
    step = next_step(key, keyset, now=now, rotate_every_s=rotate_every_s)
    if step is None:
        return ""
    what = _NEXT_WORDS[step.what]
    if step.at is None:
        return f"{what} by make {'keys-prune' if step.what is What.FORGOTTEN else 'rotate'}"
    return f"{what} {_short_time(step.at)} ({'due' if step.at <= now else relative(step.at, now=now)})"


def _short_time(at: int | None) -> str:
    """Without the zone, which stands above the table."""
    return "" if at is None else local_time(at).rsplit(" ", 1)[0]


def _state_in(key: KeyRecord, start: int, end: float) -> State:
    """The state to draw for a stretch of time: what begins in it is shown, or a short time would be lost."""
    if key.revoked_at is not None and start < key.revoked_at:
        key = replace(key, revoked_at=None)
    begins = [t for t in (key.activate_at, key.retire_at) if t is not None and start < t < end]
    return key.state(now=max([start, *begins]))
