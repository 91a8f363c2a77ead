"""Rotation and revocation as they really go: worker processes, command-line processes, files, HTTP, and real seconds.

The only tests that look at the time of day: what they are about is that processes agree by it, and those read nothing
else. The policy is scaled to seconds, so 20 rotations take about a minute, which `make soak` does; `make test` does 8.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import pytest

from authsvc import JwkSet, Policy, TokenError, Verifier, durable
from authsvc.encoding import base64url_decode
from authsvc.errors import KeysConflict
from authsvc.keyfiles import MANIFEST, Change, KeyFolder
from authsvc.keyset import Kind, Lifecycle, Purpose, State
from authsvc.rotation import rotate
from tests.support.secret_mount import SecretMount
from tests.support.service import APPID, ISSUER, SECRET, Running, Service, authsvc, clean_environment, sandbox, service

DAY: Final = 86_400
WORKERS: Final = 4

# 2 + 0 + (1 + 0) + 1 + 1 = 5 s. A worker looks once a second; the second more in `reload` is for what 4 workers, the
# load and the commands do to each other on two cores, as the 5 s of the real policy are. `skew` is 1 s because a
# key's times are whole seconds, rounded down: publishing may really happen that much later.
POLICY: Final = Lifecycle(
    lead_s=5,
    reload_s=2,
    replication_s=0,
    jwks_max_age_s=1,
    jwks_stale_while_revalidate_s=0,
    verifier_cache_s=1,
    skew_s=1,
    ttl_max_s=60,
)
TOKEN_TTL_S: Final = 60  # so that each token sees a dozen rotations or more

# On top of `reload`, and counted from the end of the command: a thread that is due may have to wait for one of two
# cores behind a dozen busy ones. 2 + 3 s are what 3 × 1 + 2 s, the ceiling for a look once a second, come to.
MARGIN_S: Final = 3.0

# Contract deadlines of single events: 3 × the 1 s between two looks, and 2 s (tests/README.md).
FOLLOWS_WITHIN_S: Final = 5.0


# ---- helpers ------------------------------------------------------------------------------------


def _init(folder: Path, policy: Lifecycle, *, age_s: int = 0) -> KeyFolder:
    """Production keys in folder/keys, made `age_s` seconds ago."""
    keys = KeyFolder(folder / "keys")
    made = keys.init(
        alg="ES256",
        purpose=Purpose.PRODUCTION,
        lifecycle=policy,
        now=int(time.time()) - age_s,
        random_bytes=os.urandom,
    )
    assert made
    return keys


def _keys(folder: Path, *args: str, **settings: str) -> dict[str, Any]:
    """A command on the key folder as an operator gives it, and what it says."""
    done = authsvc("keys", *args, "--json", cwd=folder, **settings)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _until(condition: Callable[[], bool], *, within_s: float, what: Callable[[], object] = lambda: "") -> float:
    """How long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, what()
        time.sleep(0.05)
    return time.monotonic() - began


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.time()))


def _ask(method: Literal["GET", "POST"], url: str, body: object = None) -> tuple[int, Any, http.client.HTTPMessage]:
    """One request on a connection of its own: the kernel spreads connections over the workers, not requests."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} if data else {}
        connection.request(method, f"{parts.path}?{parts.query}", body=data, headers=headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read()), reply.headers
    finally:
        connection.close()


def _all_ready(it: Running, **expected: object) -> bool:
    """Whether every worker says so: 40 connections leave none of four out but once in 25,000 times."""
    answers = [_ask("GET", f"{it.url}/readyz")[1] for _ in range(40)]
    return all(expected.items() <= answer.items() for answer in answers)


def _events(*logs: Path) -> list[dict[str, Any]]:
    """The structured lines of service logs. Another process may have a line half written."""
    found = []
    for log in logs:
        for line in log.read_text("utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if line.startswith("{"):
                    found.append(json.loads(line))
    return found


def _at(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def _named(name: str, *logs: Path) -> list[dict[str, Any]]:
    return [event for event in _events(*logs) if event.get("event") == name]


# WeChat lets one user log in 100 times a minute; the simulator is shared with other tests.
_USERS: Final = (f"rotation-{number}" for number in itertools.count())


def _log_in(it: Service) -> str:
    return it.token(next(_USERS))


def _part(token: str, number: int) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(base64url_decode(token.split(".")[number]))
    return part


def _kid(token: str) -> str:
    kid: str = _part(token, 0)["kid"]
    return kid


def _is_sound(folder: Path) -> None:
    """Whole, with nothing left over and nothing for the operator to do."""
    status = _keys(folder, "status")
    assert (status["problems"], status["strays"]) == ([], [])
    assert not list((folder / "keys").glob("*.tmp"))
    assert not (folder / "keys" / ".journal").exists()


def _give_way(threads: Iterable[int]) -> None:
    """On two cores under full load a command, which takes a second alone, would take five."""
    if sys.platform == "linux":  # where a priority is a thread's own
        for thread in threads:
            os.setpriority(os.PRIO_PROCESS, thread, 10)


def _threads(it: Running) -> Iterator[int]:
    """All threads of the service, main process and workers."""
    main = it.process.pid
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(main)], capture_output=True, text=True, check=True)
    for pid in (main, *map(int, listed.stdout.split())):
        yield from (int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())


# ---- the load, and what is held against it ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    kid: str
    issued_at: int
    expires_at: int
    asked_at: float  # when the login was begun


@dataclass(frozen=True, slots=True)
class _TakenOver:
    """A key that has begun to sign, and when the last worker must have known."""

    kid: str
    activate_at: int
    is_for_later: bool
    everywhere_at: float


@dataclass
class _Load:
    """Logs in and checks without pause, from threads, and notes whatever should not be so."""

    it: Service
    tokens: list[_Token] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    revoked_kid: str | None = None
    revoked_everywhere_at: float = float("inf")
    _copies: deque[tuple[float, float, Verifier]] = field(default_factory=deque)
    _first_alive: int = 0
    _verified_last: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        work = [self._log_in, self._check, self._check]
        work += [self._fetch_jwks, self._verify_offline, self._watch_readiness]
        numbers = itertools.count()
        threads = [threading.Thread(target=self._repeat, args=(step, next(numbers), stop)) for step in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)

    def _repeat(self, step: Callable[[random.Random], None], seed: int, stop: threading.Event) -> None:
        _give_way([threading.get_native_id()])
        chance = random.Random(seed)
        while not stop.is_set():
            try:
                step(chance)
            except (OSError, http.client.HTTPException, ValueError) as error:
                # No answer, or one that is no JSON, is as bad as a 5xx.
                self._fail(f"{step.__name__}: {type(error).__name__}: {error}")

    def _fail(self, what: str) -> None:
        self.failures.append(what)

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1

    def _log_in(self, chance: random.Random) -> None:
        _, minted, _ = _ask("POST", f"{self.it.sandbox_url}/sandbox/code", {"user": next(_USERS)})
        asked_at = time.time()
        status, body, _ = _ask("POST", f"{self.it.url}/login", {"code": minted["code"]})
        self._count("logins")
        if status != 200:
            self._fail(f"login: {status} {body}")
            return
        claims = _part(body["token"], 1)
        self.tokens.append(_Token(body["token"], _kid(body["token"]), claims["iat"], claims["exp"], asked_at))

    def _check(self, chance: random.Random) -> None:
        token = self._some_token(chance)
        if token is None:
            return
        begun_at = time.time()
        status, body, _ = _ask("GET", f"{self.it.url}/checklogin?token={token.text}")
        ended_at = time.time()
        self._count("checks")
        if status != 200:
            self._fail(f"checklogin: {status} {body}")
        elif body["is_login"] is not True:
            self._refused("checklogin", token, body["reason"], at=ended_at, known_as="revoked")
        elif token.kid == self.revoked_kid and begun_at > self.revoked_everywhere_at:
            self._fail(
                f"checklogin: took a token of the revoked key {begun_at - self.revoked_everywhere_at:.2f} s late"
            )
        elif begun_at >= token.expires_at:
            self._fail("checklogin: took a token that had ended")

    def _some_token(self, chance: random.Random) -> _Token | None:
        """As often one that has just been issued as any one that is alive."""
        count = len(self.tokens)
        while self._first_alive < count and self.tokens[self._first_alive].expires_at <= time.time():
            self._first_alive += 1
        if self._first_alive >= count:
            time.sleep(0.05)
            return None
        first = max(self._first_alive, count - 20) if chance.random() < 0.5 else self._first_alive
        return self.tokens[chance.randrange(first, count)]

    def _refused(self, who: str, token: _Token, reason: str, *, at: float, known_as: str) -> None:
        if token.kid == self.revoked_kid and reason == known_as:
            self._count(f"{who} refused as {reason}")
        elif not (at >= token.expires_at and reason == "expired"):
            self._fail(f"{who}: {reason}: {token} at {at:.2f}")

    # The verifier beside it: authsvc.Verifier over a JWKS that came over HTTP, behind caches that may keep it for
    # max-age, and then for as long as a library's own cache. It is always given the oldest copy that these still
    # allow, so it is the unluckiest of all verifiers within the policy, all the time.

    def _fetch_jwks(self, chance: random.Random) -> None:
        asked_at = time.time()
        status, jwks, headers = _ask("GET", f"{self.it.url}/.well-known/jwks.json")
        self._count("fetches of the JWKS")
        if status != 200:
            self._fail(f"JWKS: {status} {jwks}")
            return
        directives = headers["Cache-Control"].split(", ")
        max_age_s = int(next(d for d in directives if d.startswith("max-age=")).removeprefix("max-age="))
        keep_until = asked_at + max_age_s + POLICY.verifier_cache_s
        self._copies.append((asked_at, keep_until, Verifier(JwkSet(jwks), Policy(issuer=ISSUER, audience="api"))))
        time.sleep(0.1)

    def _verify_offline(self, chance: random.Random) -> None:
        """Each token at once when it is new, the moment that a kid may be unknown, and then all that live in turn."""
        seen = self.counts["shown to the offline verifier"]
        if seen < len(self.tokens):
            token: _Token | None = self.tokens[seen]
            self._count("shown to the offline verifier")
        else:
            token = self._next_token()
            time.sleep(0.001)  # else it would take the interpreter from those who make the load
        copy = self._copy_in_use()
        if token is None or copy is None:
            return
        begun_at = time.time()
        asked_at, verifier = copy
        self._count("offline verifications")
        try:
            verifier.verify(token.text)
        except TokenError as error:
            self._refused("offline verifier", token, error.code, at=time.time(), known_as="invalid")
        else:
            if token.kid == self.revoked_kid and asked_at > self.revoked_everywhere_at:
                self._fail("offline verifier: took a token of the revoked key with a JWKS from after the revocation")
            if begun_at >= token.expires_at:
                self._fail("offline verifier: took a token that had ended")

    def _next_token(self) -> _Token | None:
        self._verified_last = max(self._verified_last + 1, self._first_alive)
        if self._verified_last >= len(self.tokens):
            self._verified_last = self._first_alive
        return self.tokens[self._verified_last] if self._verified_last < len(self.tokens) else None

    def _copy_in_use(self) -> tuple[float, Verifier] | None:
        while self._copies and self._copies[0][1] < time.time():
            self._copies.popleft()
        if not self._copies:
            self._count("waits for a JWKS")
            time.sleep(0.05)
            return None
        asked_at, _, verifier = self._copies[0]
        return asked_at, verifier

    def _watch_readiness(self, chance: random.Random) -> None:
        status, body, _ = _ask("GET", f"{self.it.url}/readyz")
        self._count("looks at /readyz")
        if status != 200 or body["keys"] != "ok":
            self._fail(f"readyz: {status} {body}")
        time.sleep(0.2)


@dataclass
class _Operator:
    """Gives the commands, and notes which key signs from when on."""

    folder: Path
    standby_at: int  # when the standby was published
    takeovers: list[_TakenOver]
    generations: list[tuple[int, float]] = field(default_factory=list)  # of each change, and when its command ended

    def rotate(self) -> _TakenOver:
        done = authsvc("keys", "rotate", "--json", cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return self._note(json.loads(done.stdout), ended_at=time.time())

    def revoke(self, kid: str) -> _TakenOver:
        done = authsvc("keys", "revoke", kid, "--yes", "--json", cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return self._note(json.loads(done.stdout), ended_at=time.time())

    def _note(self, said: dict[str, Any], *, ended_at: float) -> _TakenOver:
        assert said["changed"] is True, said
        steps = {step["what"]: step for step in said["steps"] if step["kind"] == "signing"}
        takes_over = steps["takes_over"]
        self.standby_at = steps["published"]["at"]
        everywhere_at = max(float(takes_over["at"]), ended_at + POLICY.reload_s + MARGIN_S)
        found = _TakenOver(takes_over["key"], takes_over["at"], takes_over["at"] > said["now"], everywhere_at)
        self.takeovers.append(found)
        self.generations.append((said["generation"], ended_at))
        return found

    def wait_until_standby_is_known(self) -> None:
        _sleep_until(self.standby_at + POLICY.lead_s)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rotations", [8, pytest.param(20, marks=pytest.mark.soak)])
def test_through_rotations_and_a_revocation_under_load_no_genuine_token_is_refused(
    tmp_path: Path, rotations: int
) -> None:
    options = [f"--{name.removesuffix('_s').replace('_', '-')}={value}" for name, value in asdict(POLICY).items()]
    made = _keys(tmp_path, "init", *options)
    first = next(step for step in made["steps"] if step["what"] == "takes_over" and step["kind"] == "signing")
    standby = next(step for step in made["steps"] if step["what"] == "published")
    operator = _Operator(tmp_path, standby["at"], [_TakenOver(first["key"], first["at"], False, 0.0)])
    # A simulator of its own: thousands of users would be in everybody else's.
    with (
        sandbox(tmp_path) as wechat,
        service(tmp_path, wechat_url=wechat.url, WORKERS=str(WORKERS), TOKEN_TTL=str(TOKEN_TTL_S)) as it,
    ):
        load = _Load(it)
        _give_way(_threads(it))
        with load.running():
            for number in range(rotations):
                if number == rotations // 2:
                    _revoke_the_key_that_signs(operator, load)
                # In turn: a standby that every verifier knows signs at once, and the workers have `reload` to learn
                # of it; one that is too young has its time set, and the workers, who know by then, flip by the clock.
                if number % 2 == 0:
                    operator.wait_until_standby_is_known()
                rotated = operator.rotate()
                # Not the next one before the workers have had time to see this one: they look once a second.
                _sleep_until(max(rotated.activate_at, time.time() + POLICY.reload_s))
                assert load.failures[:5] == []
            _sleep_until(max(takeover.everywhere_at for takeover in operator.takeovers) + 1)
        _until(lambda: _all_ready(it, kid=operator.takeovers[-1].kid), within_s=FOLLOWS_WITHIN_S)
        log = it.output()
    delays = _workers_followed(operator, it.log)
    print(dict(load.counts), f"longest until a worker had it: {max(delays):.2f} s")
    assert load.failures[:5] == []
    for event in ("keys_not_reloaded", "keys_not_rotated", "unexpected_error", "revocation_not_remembered"):
        assert event not in log
    assert "Traceback" not in log
    kids = [takeover.kid for takeover in operator.takeovers]
    assert len(set(kids)) == 1 + rotations + 1, "the first key, the rotations, the revocation"
    for_later = [takeover.is_for_later for takeover in operator.takeovers]
    assert min(for_later.count(True), for_later.count(False)) > rotations // 6, "both ways of taking over"
    assert _signed_out_of_turn(operator.takeovers, load) == []
    assert set(kids) == {token.kid for token in load.tokens}
    assert min(load.counts[what] for what in ("logins", "checks", "offline verifications")) > 25 * rotations
    assert load.counts["checklogin refused as revoked"] > 0
    assert load.counts["offline verifier refused as invalid"] > 0
    _is_sound(tmp_path)


def _revoke_the_key_that_signs(operator: _Operator, load: _Load) -> None:
    # Who takes over is then known to every verifier, so not one genuine token is lost.
    operator.wait_until_standby_is_known()
    load.revoked_kid = operator.takeovers[-1].kid
    load.revoked_everywhere_at = operator.revoke(load.revoked_kid).everywhere_at


def _signed_out_of_turn(takeovers: list[_TakenOver], load: _Load) -> list[str]:
    """Logins that were begun when every worker had to know a key, and got an older one; or a newer one too soon."""
    turn = {takeover.kid: number for number, takeover in enumerate(takeovers)}
    found = []
    for token in load.tokens:
        mine = takeovers[turn[token.kid]]
        if token.issued_at < mine.activate_at:
            found.append(f"{token} before its time, {mine.activate_at}")
        late = [later for later in takeovers[turn[token.kid] + 1 :] if token.asked_at > later.everywhere_at]
        found += [f"{token} though {late[0]}"] if late else []
    return found


def _workers_followed(operator: _Operator, log: Path) -> list[float]:
    """After each change of the operator's, seconds from the end of the command to the moment each worker had it."""
    by_service = {event["generation"] for event in _named("keys_rotated", log)}
    loaded = _named("keys_loaded", log)
    delays = []
    for generation, ended_at in operator.generations:
        those = [_at(event) - ended_at for event in loaded if event["generation"] == generation]
        # A change that the service made right after it may be what a worker sees instead.
        if generation + 1 not in by_service:
            assert len(those) == WORKERS, (generation, those)
        delays += those
    assert max(delays) < POLICY.reload_s + MARGIN_S, sorted(delays)[-5:]
    return delays


# ---- rotation without anybody's command ---------------------------------------------------------


def test_of_8_workers_of_two_services_exactly_one_does_each_rotation_and_the_others_follow(
    tmp_path: Path, wechat: Running
) -> None:
    # Without a wait between a sealing key and its first row both kinds are due in the same second, every 4 s: so no
    # change comes before every worker has seen the one before, and each has to be in every worker's log.
    policy = Lifecycle(lead_s=3, reload_s=0, replication_s=0, jwks_max_age_s=1, jwks_stale_while_revalidate_s=0,
                       verifier_cache_s=1, skew_s=0, ttl_max_s=600, session_key_ttl_max_s=60)  # fmt: skip
    keys = _init(tmp_path, policy)
    serve = functools.partial(
        service,
        tmp_path,
        wechat_url=wechat.url,
        WORKERS=str(WORKERS),
        TOKEN_TTL="60",
        SESSION_KEY_TTL="60",
        ROTATE_EVERY="4",
    )
    with serve() as one, serve() as other:
        # A worker that is still starting begins with the newest, and has nothing to follow.
        followed_from = keys.keyset().generation + 2
        tokens: list[str] = []

        def four_that_all_follow() -> bool:
            # The other service knows a key before it signs anywhere.
            for issuer, checker in ((one, other), (other, one)):
                tokens.append(_log_in(issuer))
                assert checker.check(tokens[-1])["is_login"] is True
            return any(event["generation"] >= followed_from + 3 for event in _named("keys_rotated", one.log, other.log))

        _until(four_that_all_follow, within_s=60, what=lambda: one.output() + other.output())
        # Until all have followed the last one; the next is due 4 s after it.
        time.sleep(2)
        rotated = _named("keys_rotated", one.log, other.log)
        generation = keys.keyset().generation
        loaded = [(log, event["generation"]) for log in (one.log, other.log) for event in _named("keys_loaded", log)]
        alive = [token for token in tokens if _part(token, 1)["exp"] > time.time() + 5]
        assert [token for token in alive if one.check(token)["is_login"] is not True] == []
    assert sorted(event["generation"] for event in rotated) == list(range(2, generation + 1))
    followed = range(followed_from, generation + 1)
    assert len(followed) >= 4
    assert {it: count for it, count in Counter(loaded).items() if it[1] in followed} == {
        (log, number): WORKERS for log in (one.log, other.log) for number in followed
    }
    assert len({event["kid"] for event in rotated}) == generation - 1
    for it in (one, other):
        # In the audit log of each service once: by the one that did it, or as somebody else's.
        told = _named("keys_rotated", it.log) + _named("keys_changed", it.log)
        assert {event["logger"] for event in told} == {"authsvc.audit"}
        assert sorted(event["generation"] for event in told if event["generation"] in followed) == list(followed)
    assert len({_kid(token) for token in tokens}) >= 4
    for it in (one, other):
        assert not [name for name in ("keys_not_rotated", "keys_not_reloaded", "Traceback") if name in it.output()]


def test_keys_that_are_too_old_are_rotated_once_by_a_service_and_never_with_rotate_every_0(
    tmp_path: Path, wechat: Running
) -> None:
    keys = _init(tmp_path, Lifecycle(), age_s=100 * DAY)
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", ROTATE_EVERY="0") as it:
        time.sleep(3)
        assert "keys_rotated" not in it.output()
    assert keys.keyset().generation == 1
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        _until(lambda: _all_ready(it, generation=2, keys="ok"), within_s=FOLLOWS_WITHIN_S, what=it.output)
        time.sleep(2)
        assert [event["by"] for event in _named("keys_rotated", it.log)] == ["the service itself"]
        assert _named("keys_changed", it.log) == []
    assert keys.keyset().generation == 2


# ---- folders that others write ------------------------------------------------------------------


def _set_modes(folder: Path, *, folder_mode: int, file_mode: int) -> None:
    for path in folder.iterdir():
        path.chmod(file_mode)
    folder.chmod(folder_mode)


def test_on_a_folder_for_the_group_a_service_never_rotates_says_so_and_follows_who_does(
    tmp_path: Path, wechat: Running
) -> None:
    keys = _init(tmp_path, Lifecycle(), age_s=100 * DAY)
    _set_modes(keys.path, folder_mode=0o750, file_mode=0o640)
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", KEYS_GROUP_READ="1", ROTATE_EVERY="1") as it:
        assert "this service does not rotate keys by itself" in it.output()
        time.sleep(3)
        old = _log_in(it)
        assert _all_ready(it, generation=1, kid=_kid(old), keys="ok")
        assert "keys_rotated" not in it.output()
        _set_modes(keys.path, folder_mode=0o700, file_mode=0o600)
        kid = _keys(tmp_path, "rotate")["active"]
        _set_modes(keys.path, folder_mode=0o750, file_mode=0o640)
        _until(lambda: _all_ready(it, generation=2, kid=kid, keys="ok"), within_s=FOLLOWS_WITHIN_S, what=it.output)
        assert _kid(old) != _kid(_log_in(it)) == kid
        assert it.check(old)["is_login"] is True
        assert "keys_not_rotated" not in it.output()
        assert "keys_rotated" not in it.output()
        (changed,) = _named("keys_changed", it.log)
        assert (changed["by"], changed["generation"], changed["kid"]) == ("another process", 2, kid)


def test_a_running_service_passes_over_an_older_manifest_and_goes_on_with_its_keys(
    tmp_path: Path, wechat: Running
) -> None:
    keys = _init(tmp_path, Lifecycle(), age_s=DAY)
    manifest = keys.path / MANIFEST
    older = manifest.read_bytes()
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        kid = _keys(tmp_path, "rotate")["active"]
        _until(lambda: _all_ready(it, generation=2, keys="ok"), within_s=FOLLOWS_WITHIN_S, what=it.output)
        newer = manifest.read_bytes()
        token = _log_in(it)
        durable.replace(keys.path, MANIFEST, older)
        _until(lambda: _all_ready(it, generation=2, keys="not reloaded"), within_s=FOLLOWS_WITHIN_S, what=it.output)
        said = _named("keys_not_reloaded", it.log)
        assert len(said) == 2, "once for each worker, not once a second"
        for event in said:
            assert "went back to generation 1 from 2" in event["problem"]
            assert "mend: restore the newer one" in event["problem"]
            assert event["generation_in_force"] == 2
        assert {_kid(_log_in(it)) for _ in range(20)} == {_kid(token)} == {kid}
        assert it.check(token)["is_login"] is True
        durable.replace(keys.path, MANIFEST, newer)
        _until(lambda: _all_ready(it, generation=2, keys="ok"), within_s=FOLLOWS_WITHIN_S, what=it.output)


def test_a_backup_from_before_a_revocation_is_passed_over_by_a_running_service_and_stops_the_next_start(
    tmp_path: Path, wechat: Running
) -> None:
    keys = _init(tmp_path, Lifecycle(), age_s=DAY)
    backup, newest = tmp_path / "backup", tmp_path / "newest"
    shutil.copytree(keys.path, backup)
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        token = _log_in(it)
        _keys(tmp_path, "revoke", _kid(token), "--yes")
        _until(lambda: _all_ready(it, generation=2, keys="ok"), within_s=FOLLOWS_WITHIN_S, what=it.output)
        shutil.copytree(keys.path, newest)
        shutil.copytree(backup, keys.path, dirs_exist_ok=True)
        _until(lambda: _all_ready(it, generation=2, keys="not reloaded"), within_s=FOLLOWS_WITHIN_S, what=it.output)
        assert {it.check(token).get("reason") for _ in range(20)} == {"revoked"}
        assert it.check(_log_in(it))["is_login"] is True
    port = it.url.rpartition(":")[2]
    refused = authsvc(
        "serve", cwd=tmp_path, APPID=APPID, SECRET=SECRET, ISSUER=ISSUER, WECHAT_URL=wechat.url, PORT=port
    )
    assert refused.returncode == 2
    assert "old backup" in refused.stderr
    assert _kid(token) in refused.stderr
    shutil.copytree(newest, keys.path, dirs_exist_ok=True)
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        assert it.check(token) == {"is_login": False, "reason": "revoked"}


def test_a_service_follows_the_swap_of_a_kubernetes_secret(tmp_path: Path, wechat: Running) -> None:
    keys = _init(tmp_path, Lifecycle(), age_s=DAY)
    mount = SecretMount(tmp_path / "mount")
    mount.fill(keys.path)
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", KEYS=str(mount.path), KEYS_GROUP_READ="1") as it:
        first = _log_in(it)
        kid = _keys(tmp_path, "rotate")["active"]
        mount.fill(keys.path)
        _until(lambda: _all_ready(it, generation=2, kid=kid, keys="ok"), within_s=FOLLOWS_WITHIN_S, what=it.output)
        second = _log_in(it)
        assert _kid(first) != _kid(second) == kid
        assert [it.check(token)["is_login"] for token in (first, second)] == [True, True]
        _keys(tmp_path, "revoke", kid, "--yes")
        mount.fill(keys.path)
        _until(lambda: _all_ready(it, generation=3, keys="ok"), within_s=FOLLOWS_WITHIN_S, what=it.output)
        assert it.check(first)["is_login"] is True
        assert it.check(second) == {"is_login": False, "reason": "revoked"}
        assert it.check(_log_in(it))["is_login"] is True


# ---- two operators ------------------------------------------------------------------------------


@contextlib.contextmanager
def _operators(folder: Path, *commands: tuple[str, ...]) -> Iterator[list[subprocess.Popen[str]]]:
    """Commands on the key folder, begun at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "authsvc", "keys", *command, "--json"],
            cwd=folder,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with process:  # closes its pipes
                if process.poll() is None:
                    process.kill()


def _took_over(stdout: str) -> list[str]:
    said = json.loads(stdout)
    return [s["key"] for s in said["steps"] if s["what"] == "takes_over" and s["at"] <= said["now"]]


@pytest.mark.parametrize("_number", range(3))
def test_of_two_operators_who_rotate_at_the_same_moment_one_does_it_and_the_other_is_told(
    tmp_path: Path, _number: int
) -> None:
    keys = _init(tmp_path, Lifecycle(), age_s=DAY)
    standby = keys.keyset().standby(now=int(time.time()))
    assert standby is not None
    with _operators(tmp_path, ("rotate",), ("rotate",)) as both:
        ended = [(*process.communicate(timeout=60), process.returncode) for process in both]
    done = [stdout for stdout, _, status in ended if status == 0]
    assert [key for stdout in done for key in _took_over(stdout)] == [standby.id]
    (told,) = [(out, err, status) for out, err, status in ended if status != 0 or not _took_over(out)]
    stdout, stderr, status = told
    if status == 0:
        # Begun when the first was through: the next standby cannot sign yet, and it says so.
        assert "too young to sign" in json.loads(stdout)["message"]
    else:
        assert (status, "nothing was changed by this one" in stderr) == (2, True)
    keyset = keys.load(now=int(time.time())).keyset
    assert keyset.active(Kind.SIGNING, now=int(time.time())).id == standby.id
    assert keyset.generation == 1 + len(done)
    _is_sound(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for who waits for the lock")
@pytest.mark.parametrize("commands", [(("rotate",), ("rotate",)), (("rotate-all",), ("rotate-store",))])
def test_of_two_operators_who_have_seen_the_same_generation_exactly_one_changes_it(
    tmp_path: Path, commands: tuple[tuple[str, ...], ...]
) -> None:
    keys = _init(tmp_path, Lifecycle(), age_s=DAY)
    lock = keys.path / ".lock"

    def waits(process: subprocess.Popen[str]) -> bool:
        # The generation is read before the lock is opened.
        with contextlib.suppress(FileNotFoundError):
            return any(path.resolve() == lock for path in Path(f"/proc/{process.pid}/fd").iterdir())
        return False

    with _operators(tmp_path, *commands) as both:
        with durable.locked(keys.path, lock.name, wait_s=0):
            _until(lambda: all(map(waits, both)), within_s=60)
        ended = [(*process.communicate(timeout=60), process.returncode) for process in both]
    assert sorted(status for _, _, status in ended) == [0, 2]
    (stderr,) = [stderr for _, stderr, status in ended if status == 2]
    assert "generation 1 is now 2" in stderr
    assert "nothing was changed by this one" in stderr
    assert keys.keyset().generation == 2
    _is_sound(tmp_path)


def test_of_many_who_have_read_the_same_generation_exactly_one_changes_it(tmp_path: Path) -> None:
    path = _init(tmp_path, Lifecycle()).path
    now, rounds, many = int(time.time()), 10, 6
    have_read = threading.Barrier(many)
    outcomes: list[Change | KeysConflict] = []

    def operator() -> None:
        keys = KeyFolder(path)
        for _ in range(rounds):
            seen = keys.keyset()
            have_read.wait(30)
            try:
                outcomes.append(
                    keys.change(
                        lambda keyset, new: rotate(keyset, new, now=now, early=True),
                        now=now,
                        random_bytes=os.urandom,
                        seen=seen,
                    )
                )
            except KeysConflict as conflict:
                outcomes.append(conflict)
            have_read.wait(30)

    threads = [threading.Thread(target=operator) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = [outcome for outcome in outcomes if isinstance(outcome, Change)]
    assert [change.after.generation for change in changes] == list(range(2, rounds + 2))
    assert len(outcomes) - len(changes) == rounds * (many - 1)
    ring = KeyFolder(path).load(now=now)
    assert [key.state(now=now) for key in ring.keyset.of(Kind.SIGNING)].count(State.ACTIVE) == 1
    assert ring.prove_signing(now=now) == changes[-1].after.active(Kind.SIGNING, now=now).id
    _is_sound(tmp_path)
