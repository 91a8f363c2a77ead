"""What is seen of an installation, and what to think of it: each finding with its verdict and its mend. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from authsvc.encoding import NotCanonical, parse_json_object
from authsvc.errors import KeysError, SealBroken, WeChatBusy, WeChatError, WeChatQuotaExceeded, WeChatTimeout
from authsvc.keyset import Keyset, Kind, State
from authsvc.looks import Answer, Disk
from authsvc.sealing import key_id_of_start
from authsvc.store import Census

# What a clock may be off: verifiers refuse a token that is more than 60 s ahead of theirs.
CLOCK_ODD_S: Final = 5
_CLOCK_BROKEN_S: Final = 60

PURGED_WITHIN_S: Final = 600
"""What ended so long ago would have gone: the running service purges each minute."""

_MOST_SEALS: Final = 2**32  # see sealing
_LEAST_SPAN_S: Final = 60
_ROTATION_S: Final = 2_592_000  # where nobody named one

_OLDEST: Final = {"MySQL": (8, 0), "MariaDB": (10, 6), "Redis": (6, 2)}

_GIB: Final = 1 << 30
_DISK_LOW_BYTES: Final = _GIB
_DISK_LOW_SHARE: Final = 0.1
_DISK_FULL_BYTES: Final = 100 << 20
_INODES_FULL: Final = 100

_WORD: Final = re.compile(r"[a-z_]{1,32}")

_AT_WECHAT: Final = "at mp.weixin.qq.com, under 开发管理 (development settings)"
_MENDS: Final = {
    40013: f"compare AUTHSVC_APPID or AUTHSVC_APPS with the AppID {_AT_WECHAT}",
    41002: f"compare AUTHSVC_APPID or AUTHSVC_APPS with the AppID {_AT_WECHAT}",
    40125: f"set the AppSecret anew (AUTHSVC_SECRET, AUTHSVC_APPS): it is made {_AT_WECHAT}",
    40001: f"set the AppSecret anew (AUTHSVC_SECRET, AUTHSVC_APPS): it is made {_AT_WECHAT}",
    41004: f"set the AppSecret anew (AUTHSVC_SECRET, AUTHSVC_APPS): it is made {_AT_WECHAT}",
    40243: f"unfreeze the AppSecret {_AT_WECHAT}",
}


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line for the operator. The names of the checks, and the verdicts, stand in `--json` and do not change."""

    check: str
    verdict: Verdict
    seen: str
    mend: str = ""


def worst(findings: Iterable[Finding]) -> Verdict:
    """What comes of them all."""
    order = list(Verdict)
    return max((finding.verdict for finding in findings), key=order.index, default=Verdict.OK)


def told(name: str, problem: str, verdict: Verdict = Verdict.BROKEN, mend: str = "") -> Finding:
    """Of a sentence of ours, which often has its mend in it."""
    seen, _, told = problem.partition("; mend: ")
    return Finding(name, verdict, seen, told or mend)


def ok(name: str, seen: str) -> Finding:
    return Finding(name, Verdict.OK, seen)


def warning(name: str, seen: str, mend: str) -> Finding:
    return Finding(name, Verdict.WARNING, seen, mend)


def broken(name: str, seen: str, mend: str) -> Finding:
    return Finding(name, Verdict.BROKEN, seen, mend)


def shown_keys(keyset: Keyset, path: Path, *, now: int) -> str:
    standby = keyset.standby(now=now)
    return (
        f"{path}: generation {keyset.generation}, for {keyset.purpose}; {keyset.active(Kind.SIGNING, now=now).id} signs"
        + (f", {standby.id} stands by" if standby else "")
    )


def of_clock(theirs: int | None, host: str, *, before: int, after: int) -> Finding:
    """Whether the clock was right when it said `before` and `after` a question that was answered at `theirs`."""
    if theirs is None:
        return warning("clock", f"{host} answers without a Date, so this clock cannot be compared", "see wechat")
    # A Date is cut to its second, and the answer came at some time in between.
    ahead_s, behind_s = before - theirs - 1, theirs - after
    off_s = max(ahead_s, behind_s, 0)
    if off_s <= CLOCK_ODD_S:
        return ok("clock", f"within {CLOCK_ODD_S} s of that of {host}")
    seen = f"{off_s:,} s {'ahead of' if ahead_s > 0 else 'behind'} that of {host}"
    if off_s <= _CLOCK_BROKEN_S:
        return warning("clock", seen, "set the clock (NTP)")
    return broken("clock", f"{seen}: tokens end at the wrong time, or are refused", "set the clock (NTP)")


def of_app(appid: str, refusals: Sequence[WeChatError | None], *, several: bool) -> Iterator[Finding]:
    """What WeChat said to each secret of an app; None: it took it."""
    # Who writes {"secret": "appid"} has put the secret where the appid belongs.
    app = appid if appid.startswith("wx") else "an app whose appid does not start with wx"
    for name, refusal in zip(("first", "second"), refusals, strict=False):
        whose = f"{app}, its {name} secret" if several else app
        if refusal is None:
            yield ok("wechat", f"{whose}: WeChat takes it")
            continue
        number = "" if refusal.errcode is None else f" (WeChat's errcode {refusal.errcode})"
        seen = f"{whose}: {refusal}{number}"
        if isinstance(refusal, WeChatBusy | WeChatQuotaExceeded):
            yield warning("wechat", seen, "look again later")
        elif None in refusals:
            # While one is being reset, both work for some minutes, and then only the new one.
            yield warning("wechat", seen, "the other secret works: take this one out when the reset is over")
        else:
            yield broken("wechat", *_mended(seen, refusal))


def _mended(seen: str, refusal: WeChatError) -> tuple[str, str]:
    if refusal.seen_address is not None or refusal.errcode == 40164:
        address = refusal.seen_address or "the address that WeChat sees"
        return f"{seen}: WeChat sees {address}", f"put {address} into the allow list (IP白名单) {_AT_WECHAT}"
    if isinstance(refusal, WeChatTimeout):
        return (
            f"{seen}; WeChat does not answer",
            "see DNS, firewall and proxy on the way there, and AUTHSVC_WECHAT_URL",
        )
    return seen, _MENDS.get(refusal.errcode or 0, "see WeChat's table of return codes, and its status page")


def of_mode(file: Path, mode: int) -> Iterator[Finding]:
    if mode & 0o077:
        yield warning(
            "store",
            f"{file} is open to others (mode {mode:04o})",
            f"chmod 600 {file}; a start of the service does it",
        )


def of_census(counted: Census) -> Iterator[Finding]:
    size = "" if counted.size_bytes is None else f", {counted.size_bytes / (1 << 20):,.1f} MiB"
    yield ok("store", f"{counted.engine}: {counted.users:,} users, {counted.logins:,} logins{size}")
    name, _, version = counted.engine.partition(" ")
    oldest = _OLDEST.get(name)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if oldest is not None and numbers and numbers < oldest:
        needed = ".".join(map(str, oldest))
        yield warning("store", f"{counted.engine} is older than this was made for", f"{name} {needed} or later")
    if counted.ended_logins:
        yield warning(
            "store",
            f"{counted.ended_logins:,} logins ended more than {PURGED_WITHIN_S // 60} minutes ago and are there: "
            "no running service purges this store",
            "let the service run, which purges each minute, or authsvc store purge",
        )


def of_sealed(counted: Census, keyset: Keyset, *, now: int, rotate_every_s: int) -> Iterator[Finding]:
    by_key = {_key_id(start): rows for start, rows in counted.logins_by_start.items()}
    known = {record.id: record for record in keyset.of(Kind.SEALING)}
    for key_id, rows in by_key.items():
        if key_id not in known:
            yield warning(
                "store",
                f"{rows:,} logins are sealed under {key_id or 'nothing of ours'}, which the key folder does not have",
                "another folder may belong to this store; else their users have to log in again, and nothing is to do",
            )
    for key_id, record in known.items():
        rows = by_key.get(key_id, 0)
        if record.state(now=now) is not State.ACTIVE:
            continue  # it seals not yet, or no more
        # Of a user's logins three stay, and none for longer than it lives: so there were at least so many.
        age_s = now - (record.activate_at or 0)
        rate = rows / max(min(age_s, keyset.lifecycle.session_key_ttl_max_s), _LEAST_SPAN_S)
        used_for_s = max(rotate_every_s or _ROTATION_S, age_s)
        if rows >= _MOST_SEALS:
            yield broken("store", f"{key_id} has sealed {rows:,} rows, and is good for 2^32", "make rotate-store, now")
        elif rate * used_for_s > _MOST_SEALS:
            yield warning(
                "store",
                f"at least {rate:,.0f} logins a second: the sealing key {key_id} would seal more than 2^32 rows",
                f"make rotate-store, and AUTHSVC_ROTATE_EVERY below {_MOST_SEALS / rate:.0f}",
            )


def _key_id(start: bytes) -> str | None:
    try:
        return key_id_of_start(start)
    except SealBroken:
        return None


def of_disk(disk: Disk, folder: Path) -> Finding:
    share = disk.free_bytes / max(disk.total_bytes, 1)
    seen = f"{disk.free_bytes / _GIB:,.2f} GiB ({share:.0%}) free at {folder}"
    inodes, of_inodes = disk.free_inodes, disk.total_inodes
    few_inodes = inodes is not None and of_inodes is not None and inodes < _DISK_LOW_SHARE * of_inodes
    if few_inodes:
        seen += f", and {inodes:,} inodes of {of_inodes:,}"
    mend = "make room; see what grows there"
    if disk.free_bytes < _DISK_FULL_BYTES or (inodes is not None and inodes < _INODES_FULL):
        return broken("disk", seen, mend)
    if disk.free_bytes < _DISK_LOW_BYTES or share < _DISK_LOW_SHARE or few_inodes:
        return warning("disk", seen, mend)
    return ok("disk", seen)


def of_service(ready: Mapping[str, Any], where: str, keyset: Keyset | None, *, now: int) -> Iterator[Finding]:
    """Of what /readyz says of a service that runs, beside what the key folder says."""
    if ready.get("code") == "keys_unusable":
        yield broken("listener", f"{where}: authsvc runs and cannot sign: no key is usable", "see keys and clock")
        return
    kid, generation = ready["kid"], ready["generation"]
    yield ok("listener", f"{where}: authsvc runs and is ready, generation {generation}, {kid} signs")
    if ready.get("keys") != "ok":
        yield warning(
            "listener",
            "the running service goes on with older keys: it cannot read the folder as it is now",
            "see keys; its log says why",
        )
    if ready.get("store") != "ok":
        yield broken("listener", "the running service has no side store: logins answer 503", "see store")
    last = str(ready.get("wechat"))
    if last not in ("ok", "untried"):
        why = last if _WORD.fullmatch(last) else "an error"
        yield warning("listener", f"the last login of the worker that answered failed at WeChat: {why}", "see wechat")
    if keyset is None:
        return
    if kid not in {record.id for record in keyset.published(now=now)}:
        seen = "the running service signs with a key that the folder does not have, or not any more"
        yield broken("listener", seen, _OTHER_FOLDER)
    elif (generation, kid) != (keyset.generation, _active_id(keyset, now=now)):
        yield warning(
            "listener",
            f"the running service has generation {generation} of the keys, and the folder {keyset.generation}",
            _OTHER_FOLDER,
        )


_OTHER_FOLDER: Final = "are AUTHSVC_KEYS and the working folder here those of the service? Else its log says why"


def of_jwks(answer: Answer, issuer: str, keyset: Keyset | None, *, now: int) -> Finding:
    if answer.status >= 500:
        return warning(
            "issuer", f"{issuer} answers {answer.status}: verifiers get no keys", "is the service up? See listener"
        )
    listed = members(answer).get("keys") if answer.status == 200 else None
    if not isinstance(listed, list):
        return broken(
            "issuer",
            f"{issuer} answers {answer.status} and no JWKS: verifiers find no keys there",
            "lead /.well-known/ there to the service, or set AUTHSVC_ISSUER right",
        )
    kids = [key.get("kid") for key in listed if isinstance(key, dict)]
    active = None if keyset is None else _active_id(keyset, now=now)
    if active is None:
        return ok("issuer", f"{issuer} has a JWKS with {len(listed)} keys; which one signs here is not known")
    if active not in kids:
        return broken(
            "issuer",
            f"the JWKS of {issuer} does not have {active}, which signs here: verifiers refuse its tokens",
            "does the issuer's address lead to a service with this key folder? Is an old JWKS cached on the way?",
        )
    return ok("issuer", f"{issuer} answers, and its JWKS has the key that signs")


def _active_id(keyset: Keyset, *, now: int) -> str | None:
    try:
        return keyset.active(Kind.SIGNING, now=now).id
    except KeysError:
        return None


def members(answer: Answer) -> dict[str, Any]:
    try:
        return parse_json_object(answer.body)
    except NotCanonical:
        return {}
