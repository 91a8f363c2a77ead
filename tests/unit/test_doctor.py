"""The doctor: every check says what it sees and the mend, none stops another one, and none is waited for too long."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from authsvc.diagnoses import Finding, Verdict, of_sealed, worst
from authsvc.doctor import Surroundings, examine
from authsvc.errors import (
    CannotListen,
    StoreUnavailable,
    WeChatBadReply,
    WeChatBusy,
    WeChatError,
    WeChatMisconfigured,
    WeChatQuotaExceeded,
    WeChatTimeout,
)
from authsvc.keyfiles import MANIFEST, KeyFolder
from authsvc.keyset import Keyset, Kind, Lifecycle, Purpose
from authsvc.looks import Answer, Disk, NoAnswer, NotTrusted
from authsvc.rotation import revoke, rotate, rotate_store
from authsvc.sealing import sealed_start
from authsvc.settings import KeySettings, OperatorSettings, Settings, load_operator_settings, load_settings
from authsvc.store import FORWARDING_HEADER_SEEN, Census, SharedValue
from authsvc.store.memory import MemoryStore
from authsvc.users import Users, adopt
from authsvc.wechat import App
from tests.support.clock import NOW, FakeClock

DAY_S = 86_400
GIB = 1 << 30
APPID = "wx1234567890abcdef"
ISSUER = "https://auth.example.com"
ROOMY = Disk(1, 50 * GIB, 100 * GIB, 5_000, 10_000)
WECHAT = "https://api.weixin.qq.com"


class CountedStore(MemoryStore):
    """With a census as the test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = "memory"
        self.by_start: dict[bytes, int] = {}
        self.ended = 0
        self.asked_at: list[int] = []
        self.closed = False

    def census(self, *, now: int, start_bytes: int) -> Census:
        self.asked_at.append(now)
        found = super().census(now=now, start_bytes=start_bytes)
        return replace(found, engine=self.engine, logins_by_start=self.by_start, ended_logins=self.ended)

    def close(self) -> None:
        self.closed = True


class Installation:
    """One that is in order, until a test breaks something."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.environment = {
            "AUTHSVC_APPID": APPID,
            "AUTHSVC_SECRET": "SECRETMARKER",
            "AUTHSVC_ISSUER": ISSUER,
            "AUTHSVC_KEYS": str(path / "keys"),
            "AUTHSVC_STORE": "redis://:SECRETMARKER@localhost/0",
        }
        self.folder = KeyFolder(path / "keys")
        self.folder.init(
            alg="EdDSA", purpose=Purpose.PRODUCTION, lifecycle=Lifecycle(), now=NOW, random_bytes=os.urandom
        )
        self.store = CountedStore()
        keyring = self.folder.load(now=NOW)
        adopt(self.store, Users(keys=lambda: keyring, hashed=False), now=NOW)
        self.changes: dict[str, Any] = {}
        self.replies: dict[str, Answer | NoAnswer] = {}
        self.asked: list[tuple[App, str, str | None, float]] = []
        self.times: dict[str, int | NoAnswer | None] = {}
        self.sandbox_url: str | None = None
        self.refusals: dict[str, WeChatError] = {}  # by secret

    @property
    def keyset(self) -> Keyset:
        return self.folder.keyset()

    @property
    def signs(self) -> str:
        return self.keyset.active(Kind.SIGNING, now=self.clock.now()).id

    def change(self, transition: Callable[[Keyset, Any], Keyset]) -> None:
        self.folder.change(transition, now=self.clock.now(), random_bytes=os.urandom)

    def serves(self, **ready: object) -> None:
        """A service that listens, with this in /readyz, and whose JWKS stands at the issuer's."""
        keyset = self.keyset
        found = {"status": "ready", "keys": "ok", "generation": keyset.generation, "kid": self.signs}
        found |= {"store": "ok", "wechat": "ok"} | ready
        self.replies |= {
            "http://service/healthz": _reply({"status": "ok"}),
            "http://service/readyz": _reply(found, status=200 if "code" not in ready else 503),
        }
        self.changes["free_address"] = _taken

    def publishes(self, *kids: str) -> None:
        self.replies[f"{ISSUER}/.well-known/jwks.json"] = _reply({"keys": [{"kid": kid} for kid in kids]})

    def examine(self, *, bound_s: float = 60) -> list[Finding]:
        around = Surroundings(
            clock=self.clock,
            settings=self._settings,
            operator_settings=self._operator_settings,
            keys=self._keys,
            sandbox_url=lambda: self.sandbox_url,
            service_url=lambda _settings: "http://service",
            access_token=self._access_token,
            ask_wechat=self._ask_wechat,
            ask=self._ask,
            check_store=lambda _url: None,
            open_store=lambda _url: self.store,
            disk=lambda _folder: ROOMY,
            free_address=lambda _host, _port: None,
            ping_redis=lambda _url: None,
        )
        found = examine(replace(around, **self.changes), bound_s=bound_s)
        assert "MARKER" not in json.dumps([str(finding) for finding in found])
        return found

    def of(self, check: str) -> list[Finding]:
        return [finding for finding in self.examine() if finding.check == check]

    def only(self, check: str) -> Finding:
        (finding,) = self.of(check)
        return finding

    def amiss(self, check: str) -> Finding:
        """What of a check is not ok; one thing."""
        (finding,) = (finding for finding in self.of(check) if finding.verdict is not Verdict.OK)
        return finding

    def _settings(self) -> Settings:
        return load_settings(self.environment, dotenv=None, cores=2)

    def _operator_settings(self) -> OperatorSettings:
        return load_operator_settings(self.environment, dotenv=None)

    @staticmethod
    def _keys(settings: KeySettings) -> KeyFolder:
        return KeyFolder(settings.path, group_read=settings.group_read, passphrase=settings.passphrase)

    def _access_token(self, app: App, url: str, fallback_url: str | None, within_s: float) -> object:
        self.asked.append((app, url, fallback_url, within_s))
        if app.secrets[0] in self.refusals:
            raise self.refusals[app.secrets[0]]
        return "ACCESSTOKENMARKER"

    def _ask_wechat(self, url: str, within_s: float) -> Answer:
        assert 0 < within_s <= 5
        found = self.times.get(url.removesuffix("/"), self.clock.now())
        if isinstance(found, NoAnswer):
            raise found
        return Answer(404, b"", found)

    def _ask(self, url: str, within_s: float) -> Answer:
        assert 0 < within_s <= 5
        if url.startswith(ISSUER) and url not in self.replies:
            return _reply({"keys": [{"kid": self.signs}]})
        found = self.replies.get(url, NoAnswer("no connection"))
        if isinstance(found, NoAnswer):
            raise found
        return found


def _reply(members: object, *, status: int = 200) -> Answer:
    return Answer(status, json.dumps(members).encode(), None)


def _taken(host: str, port: int) -> object:
    raise CannotListen(f"cannot listen on {host} port {port}: in use; mend: set AUTHSVC_HOST or AUTHSVC_PORT")


@pytest.fixture
def it(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def test_where_all_is_well_every_check_is_ok(it: Installation) -> None:
    found = it.examine()
    assert [finding for finding in found if finding.verdict is not Verdict.OK] == []
    assert [finding.check for finding in found if finding.check != "store"] == [
        *("configuration", "keys", "clock", "wechat", "proxy", "disk", "limits", "listener", "issuer"),
    ]
    assert it.store.closed


# ---- how checks are run -------------------------------------------------------------------------


def test_a_check_that_hangs_is_given_up_and_what_it_had_found_counts(it: Installation) -> None:
    end = threading.Event()

    def hangs(*_args: object) -> Any:
        assert end.wait(60)
        raise NoAnswer("too late")

    it.environment["AUTHSVC_LIMITS_URL"] = "redis://localhost"
    it.changes |= {"ping_redis": hangs}
    it.store.census = hangs  # type: ignore[assignment, method-assign]
    try:
        found = it.examine(bound_s=0.5)
    finally:
        end.set()
    limits = [finding for finding in found if finding.check == "limits"]
    assert [(finding.verdict, "has not ended" in finding.seen) for finding in limits] == [(Verdict.BROKEN, True)]
    store = [finding for finding in found if finding.check == "store"]
    assert [finding.verdict for finding in store] == [Verdict.OK, Verdict.BROKEN]
    assert next(finding for finding in found if finding.check == "issuer").verdict is Verdict.OK


def test_a_check_that_fails_as_nobody_foresaw_stops_no_other_and_shows_no_message(it: Installation) -> None:
    def fails(*_args: object) -> Any:
        raise RuntimeError("SECRETMARKER")

    for name in ("keys", "ask_wechat", "access_token", "open_store", "disk", "free_address", "ask"):
        it.changes[name] = fails
    found = it.examine()
    broken = {finding.check for finding in found if "RuntimeError" in finding.seen}
    assert broken == {"keys", "clock", "wechat", "store", "disk", "listener", "issuer"}
    assert all(finding.mend == "please report it" for finding in found if "RuntimeError" in finding.seen)
    assert [finding.verdict for finding in found if finding.check in ("configuration", "limits")] == [Verdict.OK] * 2


@pytest.mark.parametrize(
    ("verdicts", "found"),
    [([], "ok"), (["ok", "warning", "ok"], "warning"), (["broken", "warning", "ok"], "broken"), (["ok"], "ok")],
)
def test_the_worst_finding_is_what_comes_of_all(verdicts: list[str], found: str) -> None:
    assert worst(Finding("x", Verdict(verdict), "") for verdict in verdicts) == found


# ---- configuration ------------------------------------------------------------------------------


def test_every_problem_of_the_settings_is_a_line_and_keys_store_and_disk_are_looked_at_all_the_same(
    it: Installation,
) -> None:
    it.environment |= {"AUTHSVC_PORT": "x", "AUTHSVC_TOKEN_TTL": "0", "AUTHSVC_AUDIENC": "x"}
    found = it.examine()
    configuration = [(f.verdict, f.seen.split()[0]) for f in found if f.check == "configuration"]
    # authsvc config refuses these too.
    assert not any("authsvc config" in f.mend for f in found)
    assert configuration == [
        (Verdict.BROKEN, "AUTHSVC_TOKEN_TTL"),
        (Verdict.BROKEN, "AUTHSVC_PORT"),
        (Verdict.WARNING, "AUTHSVC_AUDIENC"),
    ]
    assert {f.verdict for f in found if f.check in ("keys", "store", "disk")} == {Verdict.OK}
    others = [f for f in found if f.check in ("clock", "wechat", "limits", "listener", "issuer")]
    assert [(f.verdict, f.mend) for f in others] == [(Verdict.WARNING, "mend that first")] * 5


def test_without_usable_operator_settings_nothing_is_looked_at_and_said_so(it: Installation) -> None:
    it.environment["AUTHSVC_KEYS_PASSPHRASE"] = "MARKER"
    found = it.examine()
    assert [f.check for f in found] == [
        *("configuration", "keys", "clock", "wechat", "store", "disk", "limits", "listener", "issuer"),
    ]
    assert {f.verdict for f in found[1:]} == {Verdict.WARNING}


def test_settings_that_are_in_order_are_shown_by_apps_and_issuer(it: Installation) -> None:
    assert it.only("configuration").seen == f"1 app, issuer {ISSUER}"
    del it.environment["AUTHSVC_APPID"], it.environment["AUTHSVC_SECRET"]
    it.environment["AUTHSVC_APPS"] = '{"wx1": "MARKER-1", "wx2": "MARKER-2"}'
    assert it.only("configuration").seen == f"2 apps, issuer {ISSUER}"


def test_a_warning_of_the_settings_is_a_warning(it: Installation) -> None:
    it.environment["AUTHSVC_ISSUER"] = "http://127.0.0.1:3000"
    assert it.only("configuration").verdict is Verdict.WARNING


# ---- keys ---------------------------------------------------------------------------------------


def test_keys_that_are_in_order_are_shown_by_generation_and_by_what_signs(it: Installation) -> None:
    seen = it.only("keys").seen
    assert "generation 1, for production" in seen
    assert f"{it.signs} signs" in seen
    standby = it.keyset.standby(now=NOW)
    assert standby is not None
    assert f"{standby.id} stands by" in seen


def test_everything_that_is_wrong_with_the_folder_is_named(it: Installation) -> None:
    it.folder.path.chmod(0o755)
    part = next(it.folder.path.glob("seal-*"))
    part.chmod(0o644)
    found = it.of("keys")
    assert {finding.verdict for finding in found} == {Verdict.BROKEN}
    assert sorted(finding.mend for finding in found) == [f"chmod 600 {part}", f"chmod 700 {it.folder.path}"]


def test_no_key_folder_and_a_broken_manifest_are_broken(it: Installation) -> None:
    (it.folder.path / MANIFEST).write_text("{")
    assert (it.only("keys").verdict, "restore" in it.only("keys").mend) == (Verdict.BROKEN, True)
    it.folder.path.rename(it.path / "away")
    assert (it.only("keys").verdict, "keys init" in it.only("keys").mend) == (Verdict.BROKEN, True)


def test_keys_of_the_sandbox_are_not_for_production(it: Installation, tmp_path: Path) -> None:
    sandbox = KeyFolder(tmp_path / "sandbox")
    sandbox.init(alg="EdDSA", purpose=Purpose.SANDBOX, lifecycle=Lifecycle(), now=NOW, random_bytes=os.urandom)
    it.environment["AUTHSVC_KEYS"] = str(sandbox.path)
    assert "for sandbox, not production" in it.amiss("keys").seen
    assert it.amiss("keys").verdict is Verdict.BROKEN


def test_what_an_interrupted_command_left_is_a_warning(it: Installation) -> None:
    (it.folder.path / ".journal").write_text("[]")
    assert (it.amiss("keys").verdict, "keys-prune" in it.amiss("keys").mend) == (Verdict.WARNING, True)


def test_a_private_part_that_no_key_has_is_a_warning_with_its_name(it: Installation) -> None:
    (it.folder.path / "seal-00000000.key").write_text("SECRETMARKER")
    assert (it.amiss("keys").verdict, "seal-00000000.key" in it.amiss("keys").seen) == (Verdict.WARNING, True)


def test_a_missing_standby_and_an_overdue_rotation_are_warnings(it: Installation) -> None:
    standby = it.keyset.standby(now=NOW)
    assert standby is not None
    it.change(lambda keyset, _new: keyset.changed(now=NOW, keys=tuple(k for k in keyset.keys if k != standby)))
    it.clock.at += 31 * DAY_S
    found = it.of("keys")
    assert {finding.verdict for finding in found} == {Verdict.WARNING}
    assert any("no standby" in finding.seen for finding in found)
    assert any("longer than AUTHSVC_ROTATE_EVERY" in finding.seen for finding in found)


def test_what_serve_would_refuse_is_broken(it: Installation) -> None:
    it.environment["AUTHSVC_ROTATE_EVERY"] = "10"
    assert any("AUTHSVC_ROTATE_EVERY=10 is too short" in finding.seen for finding in it.of("keys"))
    del it.environment["AUTHSVC_ROTATE_EVERY"]
    it.environment |= {"AUTHSVC_KEYS_GROUP_READ": "1", "AUTHSVC_TOKEN_TTL": "80000"}
    assert (it.amiss("keys").verdict, "AUTHSVC_TOKEN_TTL" in it.amiss("keys").seen) == (Verdict.BROKEN, True)
    assert any("nothing here rotates by itself" in finding.seen for finding in it.of("keys"))


def test_a_wrong_passphrase_is_broken(it: Installation) -> None:
    it.environment["AUTHSVC_KEYS_PASSPHRASE"] = "PASSPHRASEMARKER-1"
    found = it.of("keys")
    assert {finding.verdict for finding in found} == {Verdict.BROKEN}
    assert "make keys-passphrase" in found[0].mend


# ---- clock --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs_s", "verdict", "seen"),
    [
        (0, "ok", "within 5 s"),
        (5, "ok", "within 5 s"),
        (-6, "ok", "within 5 s"),  # a Date is cut to its second
        (6, "warning", "6 s behind that of api.weixin.qq.com"),
        (-7, "warning", "6 s ahead of that of"),
        (60, "warning", "60 s behind"),
        (-61, "warning", "60 s ahead of"),
        (61, "broken", "61 s behind"),
        (-62, "broken", "61 s ahead of"),
        (3_600, "broken", "3,600 s behind"),
    ],
)
def test_the_clock_is_held_against_wechats(it: Installation, theirs_s: int, verdict: str, seen: str) -> None:
    it.times[WECHAT] = NOW + theirs_s
    finding = it.only("clock")
    assert (finding.verdict, seen in finding.seen) == (verdict, True), finding
    assert (finding.mend == "") is (verdict == "ok")


def test_the_time_that_an_answer_takes_is_not_held_against_the_clock(it: Installation) -> None:
    def ask(_url: str, _within_s: float) -> Answer:
        theirs = it.clock.at
        it.clock.at += 20
        return Answer(200, b"", theirs)

    it.changes["ask_wechat"] = ask
    assert it.only("clock").verdict is Verdict.OK


def test_where_wechat_does_not_answer_its_other_host_is_asked_for_the_time(it: Installation) -> None:
    it.times[WECHAT] = NoAnswer("no connection")
    found = it.of("clock")
    assert [finding.verdict for finding in found] == [Verdict.WARNING, Verdict.OK]
    assert "api.weixin.qq.com does not tell the time: no connection" in found[0].seen
    assert "api2.weixin.qq.com" in found[1].seen


def test_a_certificate_that_is_not_trusted_is_named_as_such(it: Installation) -> None:
    for host in ("api", "api2"):
        it.times[f"https://{host}.weixin.qq.com"] = NotTrusted("the certificate is not trusted (not yet valid)")
    found = it.of("clock")
    assert [finding.verdict for finding in found] == [Verdict.BROKEN, Verdict.BROKEN]
    assert all("not trusted (not yet valid)" in f.seen and "look at the clock first" in f.mend for f in found)


def test_an_answer_without_a_date_says_nothing_of_the_clock(it: Installation) -> None:
    it.times[WECHAT] = None
    assert it.only("clock").verdict is Verdict.WARNING


@pytest.mark.parametrize(("behind_s", "verdict"), [(5, "ok"), (6, "warning"), (60, "warning"), (61, "broken")])
def test_the_clock_is_held_against_the_last_change_of_the_keys(it: Installation, behind_s: int, verdict: str) -> None:
    it.clock.at = NOW - behind_s
    found = it.of("clock")
    assert found[-1].verdict == verdict
    assert (len(found) == 1) is (verdict == "ok")
    assert verdict == "ok" or f"{behind_s} s behind the last change of the keys" in found[-1].seen


# ---- WeChat -------------------------------------------------------------------------------------


def _refused(errcode: int, message: str = "WeChat refuses", **members: Any) -> WeChatError:
    return WeChatMisconfigured(message, errcode=errcode, **members)


def test_each_secret_of_each_app_is_tried_by_itself(it: Installation) -> None:
    del it.environment["AUTHSVC_APPID"], it.environment["AUTHSVC_SECRET"]
    it.environment["AUTHSVC_APPS"] = '{"wx1": ["MARKER-1", "MARKER-2"], "wx2": "MARKER-3"}'
    assert [finding.seen for finding in it.of("wechat")] == [
        "wx1, its first secret: WeChat takes it",
        "wx1, its second secret: WeChat takes it",
        "wx2: WeChat takes it",
    ]
    assert [(app.appid, app.secrets) for app, *_ in it.asked] == [
        ("wx1", ("MARKER-1",)),
        ("wx1", ("MARKER-2",)),
        ("wx2", ("MARKER-3",)),
    ]
    assert {asked[1:] for asked in it.asked} == {(WECHAT, "https://api2.weixin.qq.com", 5)}


@pytest.mark.parametrize(
    ("error", "verdict", "seen", "mend"),
    [
        (_refused(40013), "broken", "errcode 40013", "AUTHSVC_APPID"),
        (_refused(40125), "broken", "errcode 40125", "AUTHSVC_SECRET"),
        (_refused(40001), "broken", "errcode 40001", "AUTHSVC_SECRET"),
        (_refused(41002), "broken", "errcode 41002", "AUTHSVC_APPID"),
        (_refused(41004), "broken", "errcode 41004", "AUTHSVC_SECRET"),
        (_refused(40243), "broken", "errcode 40243", "unfreeze"),
        (_refused(40164, seen_address="192.0.2.7"), "broken", "WeChat sees 192.0.2.7", "put 192.0.2.7 into the allow"),
        (_refused(40164), "broken", "40164", "put the address that WeChat sees into the allow list"),
        (WeChatError("an error", errcode=99999), "broken", "99999", "table of return codes"),
        (WeChatBadReply("not JSON"), "broken", "not JSON", "table of return codes"),
        (WeChatTimeout("no connection"), "broken", "no connection; WeChat does not answer", "firewall"),
        (WeChatBusy("busy", errcode=-1), "warning", "busy", "later"),
        (WeChatQuotaExceeded("quota", errcode=45009), "warning", "quota", "later"),
    ],
)
def test_what_wechat_refuses_is_told_with_its_mend(
    it: Installation, error: WeChatError, verdict: str, seen: str, mend: str
) -> None:
    it.refusals["SECRETMARKER"] = error
    finding = it.only("wechat")
    assert (finding.verdict, seen in finding.seen, mend in finding.mend) == (verdict, True, True), finding
    assert APPID in finding.seen


def test_of_two_secrets_one_that_works_is_enough(it: Installation) -> None:
    del it.environment["AUTHSVC_APPID"], it.environment["AUTHSVC_SECRET"]
    it.environment["AUTHSVC_APPS"] = '{"wx1": ["MARKER-1", "MARKER-2"]}'
    it.refusals["MARKER-1"] = _refused(40125)
    found = it.of("wechat")
    assert [(f.verdict, "first" in f.seen) for f in found] == [(Verdict.WARNING, True), (Verdict.OK, False)]
    it.refusals["MARKER-2"] = _refused(40125)
    assert [finding.verdict for finding in it.of("wechat")] == [Verdict.BROKEN, Verdict.BROKEN]


def test_a_wechat_that_does_not_answer_is_asked_once(it: Installation) -> None:
    del it.environment["AUTHSVC_APPID"], it.environment["AUTHSVC_SECRET"]
    it.environment["AUTHSVC_APPS"] = '{"wx1": ["MARKER-1", "MARKER-2"], "wx2": "MARKER-3", "wx3": "MARKER-4"}'
    it.refusals["MARKER-1"] = WeChatTimeout("no connection")
    found = it.of("wechat")
    assert [app.secrets for app, *_ in it.asked] == [("MARKER-1",)]
    assert [finding.verdict for finding in found] == [Verdict.BROKEN, Verdict.WARNING]
    assert "first secret" in found[0].seen
    assert "2 more apps were not asked for" in found[1].seen


def test_many_apps_are_asked_for_within_seconds_or_said_not_to_be(it: Installation) -> None:
    del it.environment["AUTHSVC_APPID"], it.environment["AUTHSVC_SECRET"]
    it.environment["AUTHSVC_APPS"] = json.dumps({f"wx{n}": "MARKER" for n in range(30)})

    def slow(_app: App, *_rest: object) -> object:
        it.clock.at += 1
        return None

    it.changes["access_token"] = slow
    found = it.of("wechat")
    assert len(found) == 9
    assert (found[-1].verdict, "22 apps were not asked for" in found[-1].seen) == (Verdict.WARNING, True)


def test_who_mixes_up_appid_and_secret_does_not_see_the_secret(it: Installation) -> None:
    del it.environment["AUTHSVC_APPID"], it.environment["AUTHSVC_SECRET"]
    it.environment["AUTHSVC_APPS"] = '{"SECRETMARKER": "wx1234567890abcdef"}'
    it.refusals["wx1234567890abcdef"] = _refused(40013)
    assert "does not start with wx" in it.only("wechat").seen


def test_wechat_is_waited_for_no_longer_than_by_a_login(it: Installation) -> None:
    it.environment["AUTHSVC_WECHAT_TIMEOUT"] = "2"
    it.examine()
    it.environment["AUTHSVC_WECHAT_TIMEOUT"] = "60"
    it.examine()
    assert [within_s for *_, within_s in it.asked] == [2, 5]


# ---- the sandbox --------------------------------------------------------------------------------


@pytest.fixture
def sandbox(it: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.chdir(it.path)
    it.environment = {"AUTHSVC_SANDBOX": "1"}
    return it


def test_of_a_sandbox_that_does_not_run_nothing_is_asked_and_nothing_is_broken(sandbox: Installation) -> None:
    found = {f.check: f for f in sandbox.examine()}
    assert sandbox.asked == []
    assert {f.check for f in found.values() if f.verdict is not Verdict.OK} == {"keys", "store"}
    assert {f.mend for f in found.values() if f.verdict is Verdict.WARNING} == {"make run makes it"}
    assert not (sandbox.path / ".sandbox").exists()


def test_a_sandbox_that_runs_is_asked_as_wechat_is(sandbox: Installation) -> None:
    sandbox.sandbox_url = "http://127.0.0.1:3001"
    assert (sandbox.only("wechat").verdict, sandbox.only("clock").verdict) == (Verdict.OK, Verdict.OK)
    assert sandbox.asked[0][1:3] == ("http://127.0.0.1:3001", None)


def test_a_store_that_the_next_start_of_the_sandbox_takes_over_is_no_more_than_a_warning(sandbox: Installation) -> None:
    folder = KeyFolder(sandbox.path / ".sandbox" / "keys")
    folder.init(alg="EdDSA", purpose=Purpose.SANDBOX, lifecycle=Lifecycle(), now=NOW, random_bytes=os.urandom)
    (sandbox.path / ".sandbox" / "authsvc.db").touch(0o600)
    assert (sandbox.amiss("store").verdict, sandbox.amiss("store").mend) == (Verdict.WARNING, "make run takes it over")


# ---- store --------------------------------------------------------------------------------------


def test_a_store_that_is_gone_is_broken_and_not_made(it: Installation) -> None:
    it.environment["AUTHSVC_STORE"] = f"sqlite:///{it.path}/gone.db"
    assert (it.only("store").verdict, "authsvc serve makes it" in it.only("store").mend) == (Verdict.BROKEN, True)
    assert not (it.path / "gone.db").exists()


def test_a_store_of_another_form_is_broken(it: Installation) -> None:
    def newer(_url: str) -> None:
        raise StoreUnavailable("of another version of authsvc; mend: that version")

    it.changes["check_store"] = newer
    assert it.only("store") == Finding("store", Verdict.BROKEN, "of another version of authsvc", "that version")


def test_a_store_that_cannot_be_reached_is_broken_with_what_to_look_at(it: Installation) -> None:
    def down(_url: str) -> None:
        raise StoreUnavailable("it did not answer (OperationalError)")

    it.changes["check_store"] = down
    assert it.only("store").verdict is Verdict.BROKEN
    assert "password in AUTHSVC_STORE right" in it.only("store").mend


def test_a_store_that_takes_no_write_is_broken_and_the_rest_is_looked_at(it: Installation) -> None:
    def full() -> None:
        raise StoreUnavailable("the side store did not answer (OperationalError, SQLITE_FULL)")

    it.store.ping = full  # type: ignore[method-assign]
    found = it.of("store")
    assert [finding.verdict for finding in found] == [Verdict.BROKEN, Verdict.OK]
    assert "SQLITE_FULL" in found[0].seen
    assert "disk full" in found[0].mend


def test_a_store_of_another_key_folder_is_broken(it: Installation, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    other.init(alg="EdDSA", purpose=Purpose.PRODUCTION, lifecycle=Lifecycle(), now=NOW, random_bytes=os.urandom)
    it.environment["AUTHSVC_KEYS"] = str(other.path)
    assert (it.amiss("store").verdict, "AUTHSVC_KEYS" in it.amiss("store").seen) == (Verdict.BROKEN, True)
    it.environment["AUTHSVC_STORE_OPENID"] = "hash"
    assert len([finding for finding in it.of("store") if finding.verdict is Verdict.BROKEN]) == 2


def test_keys_from_an_old_backup_are_told_by_the_store(it: Installation) -> None:
    it.store.note_revoked_keys({it.signs: NOW})
    assert (it.amiss("store").verdict, "old backup" in it.amiss("store").seen) == (Verdict.BROKEN, True)


def test_without_keys_it_cannot_be_told_whose_the_store_is(it: Installation) -> None:
    it.folder.path.chmod(0o755)
    assert (it.amiss("store").verdict, "whose it is" in it.amiss("store").seen) == (Verdict.WARNING, True)


def test_a_file_that_others_may_read_is_a_warning_and_left_as_it_is(it: Installation) -> None:
    file = it.path / "a.db"
    file.touch(0o600)
    it.environment["AUTHSVC_STORE"] = f"sqlite:///{file}"
    assert {finding.verdict for finding in it.of("store")} == {Verdict.OK}
    file.chmod(0o640)
    assert (it.amiss("store").verdict, "chmod 600" in it.amiss("store").mend) == (Verdict.WARNING, True)
    assert file.stat().st_mode & 0o777 == 0o640


def test_rows_that_no_purge_takes_away_are_a_warning(it: Installation) -> None:
    it.store.ended = 7
    assert (it.amiss("store").verdict, "7 logins ended" in it.amiss("store").seen) == (Verdict.WARNING, True)
    assert it.store.asked_at[0] == NOW - 600, "what has ended since is for the next purge"


def test_logins_under_a_key_that_is_not_there_are_a_warning(it: Installation) -> None:
    it.store.by_start = {sealed_start("0badc0de"): 3, b"xxxxx": 2}
    found = [f.seen for f in it.of("store") if f.verdict is Verdict.WARNING]
    assert ["0badc0de" in found[0], "nothing of ours" in found[1], len(found)] == [True, True, 2]


@pytest.mark.parametrize(
    ("engine", "old"),
    [
        *(("MySQL 5.7.4", True), ("MySQL 8.0.1", False), ("MariaDB 10.5.9", True), ("MariaDB 10.11.2", False)),
        *(("Redis 6.0.16", True), ("Redis 7.2.4", False), ("Valkey 8.0.1", False), ("SQLite 3.40.1", False)),
    ],
)
def test_an_engine_that_is_too_old_is_a_warning(it: Installation, engine: str, old: bool) -> None:
    it.store.engine = engine
    warned = [finding for finding in it.of("store") if finding.verdict is Verdict.WARNING]
    assert ["older than this was made for" in finding.seen for finding in warned] == ([True] if old else [])


def test_a_store_that_is_too_large_to_be_counted_in_time_is_a_warning(it: Installation) -> None:
    def slow(**_arguments: int) -> Census:
        raise StoreUnavailable("the side store did not answer (QueryCanceled)")

    it.store.census = slow  # type: ignore[method-assign]
    assert it.amiss("store").verdict is Verdict.WARNING


def _sealed(it: Installation, rows: int, *, age_s: int, rotate_every_s: int = 30 * DAY_S) -> list[Finding]:
    sealing = it.keyset.active(Kind.SEALING, now=NOW)
    counted = Census("x", None, 0, 0, rows, 0, {sealed_start(sealing.id): rows}, None, 0)
    return list(of_sealed(counted, it.keyset, now=NOW + age_s, rotate_every_s=rotate_every_s))


def test_a_sealing_key_that_would_seal_more_than_it_may_is_a_warning(it: Installation) -> None:
    # 2^32 rows in 30 days are 1,657 a second; the store has those of three days.
    assert _sealed(it, 1_656 * 3 * DAY_S, age_s=10 * DAY_S) == []
    (finding,) = _sealed(it, 1_659 * 3 * DAY_S, age_s=10 * DAY_S)
    assert (finding.verdict, "1,659 logins a second" in finding.seen) == (Verdict.WARNING, True)
    # A shorter use is the mend.
    assert _sealed(it, 1_659 * 3 * DAY_S, age_s=10 * DAY_S, rotate_every_s=20 * DAY_S) == []
    assert len(_sealed(it, 1_659 * 3 * DAY_S, age_s=31 * DAY_S, rotate_every_s=20 * DAY_S)) == 1
    assert len(_sealed(it, 1_659 * 3 * DAY_S, age_s=10 * DAY_S, rotate_every_s=0)) == 1
    # A young key has been counted for as long as it is old, and not less than a minute.
    assert len(_sealed(it, 1_700 * 600, age_s=600)) == 1
    assert _sealed(it, 1_000 * 60, age_s=1) == []
    (finding,) = _sealed(it, 2**32, age_s=30 * DAY_S)
    assert (finding.verdict, "rotate-store" in finding.mend) == (Verdict.BROKEN, True)


def test_a_key_that_seals_no_more_is_not_counted(it: Installation) -> None:
    sealing = it.keyset.active(Kind.SEALING, now=NOW)
    it.change(lambda keyset, new: rotate_store(keyset, new, now=NOW))
    retired = it.keyset.key(sealing.id)
    assert retired is not None
    assert retired.retire_at is not None
    counted = Census("x", None, 0, 0, 0, 0, {sealed_start(sealing.id): 2**40}, None, 0)
    terms = {"now": NOW + DAY_S, "rotate_every_s": 30 * DAY_S}
    assert list(of_sealed(counted, it.keyset, **terms)) == []
    # Until then it goes on.
    (finding,) = of_sealed(counted, it.keyset, now=NOW, rotate_every_s=30 * DAY_S)
    assert finding.verdict is Verdict.BROKEN


def test_what_lies_in_the_store_is_shown(it: Installation) -> None:
    counted = Census("SQLite 3.40.1", 3 << 20, 1_234, 0, 2, 0, {}, None, 0)
    it.store.census = lambda **_: counted  # type: ignore[method-assign]
    assert "SQLite 3.40.1: 1,234 users, 2 logins, 3.0 MiB" in [finding.seen for finding in it.of("store")]


# ---- what is behind a proxy ---------------------------------------------------------------------


def test_a_header_of_a_proxy_where_none_is_trusted_is_a_warning(it: Installation) -> None:
    it.store.share(SharedValue(FORWARDING_HEADER_SEEN, b"X-Forwarded-For", NOW + 60))
    finding = it.only("proxy")
    assert (finding.verdict, "X-Forwarded-For" in finding.seen) == (Verdict.WARNING, True)
    assert "AUTHSVC_TRUSTED_PROXIES=1" in finding.mend
    it.environment["AUTHSVC_TRUSTED_PROXIES"] = "1"
    assert it.of("proxy") == []


def test_a_note_that_has_ended_or_is_no_header_is_not_shown(it: Installation) -> None:
    it.store.share(SharedValue(FORWARDING_HEADER_SEEN, b"X-Forwarded-For", NOW))
    assert it.only("proxy").verdict is Verdict.OK
    it.store.share(SharedValue(FORWARDING_HEADER_SEEN, b"\x1b[31m SECRETMARKER", NOW + 60))
    assert "a header of a proxy" in it.only("proxy").seen


# ---- disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disk", "verdict"),
    [
        (Disk(1, GIB, 2 * GIB, None, None), "ok"),
        (Disk(1, GIB - 1, 2 * GIB, None, None), "warning"),
        (Disk(1, 10 * GIB, 100 * GIB, None, None), "ok"),
        (Disk(1, 10 * GIB - 1, 100 * GIB, None, None), "warning"),
        (Disk(1, 100 << 20, 200 << 20, None, None), "warning"),
        (Disk(1, (100 << 20) - 1, 200 << 20, None, None), "broken"),
        (Disk(1, 50 * GIB, 100 * GIB, 1_000, 10_000), "ok"),
        (Disk(1, 50 * GIB, 100 * GIB, 999, 10_000), "warning"),
        (Disk(1, 50 * GIB, 100 * GIB, 99, 200), "broken"),
        (Disk(1, 0, 0, 0, 0), "broken"),
    ],
)
def test_a_disk_that_fills_up_is_told_in_time(it: Installation, disk: Disk, verdict: str) -> None:
    it.changes["disk"] = lambda _folder: disk
    assert it.only("disk").verdict == verdict


def test_the_disks_of_store_and_keys_are_looked_at_and_one_that_is_both_once(it: Installation) -> None:
    (it.path / "db").mkdir()
    (it.path / "db" / "a.db").touch(0o600)
    it.environment["AUTHSVC_STORE"] = f"sqlite:///{it.path}/db/a.db"
    disks = {it.path / "db": ROOMY, it.path / "keys": replace(ROOMY, device=2)}
    it.changes["disk"] = disks.__getitem__
    assert [f.seen.rsplit(" ", 1)[1] for f in it.of("disk")] == [str(it.path / "db"), str(it.path / "keys")]
    disks[it.path / "keys"] = ROOMY
    assert len(it.of("disk")) == 1


def test_a_key_folder_that_is_only_read_needs_no_room(it: Installation) -> None:
    it.environment["AUTHSVC_KEYS_GROUP_READ"] = "1"
    assert it.of("disk") == []


def test_a_folder_that_cannot_be_looked_at_is_broken(it: Installation) -> None:
    def gone(_folder: Path) -> Disk:
        raise OSError(5, "Input/output error")

    it.changes["disk"] = gone
    assert (it.only("disk").verdict, "Input/output error" in it.only("disk").seen) == (Verdict.BROKEN, True)


# ---- rate limits --------------------------------------------------------------------------------


def test_limits_in_memory_are_divided_by_the_workers_and_said_so(it: Installation) -> None:
    assert (it.only("limits").verdict, "divided by the 2 workers" in it.only("limits").seen) == (Verdict.OK, True)
    it.environment["AUTHSVC_WORKERS"] = "1"
    assert "divided" not in it.only("limits").seen


def test_the_redis_of_the_limits_has_to_answer(it: Installation) -> None:
    pinged: list[str] = []
    it.changes["ping_redis"] = pinged.append
    it.environment["AUTHSVC_LIMITS_URL"] = "redis://:SECRETMARKER@localhost"
    assert it.only("limits").verdict is Verdict.OK
    assert pinged == ["redis://:SECRETMARKER@localhost"]

    def down(_url: str) -> None:
        raise NoAnswer("it does not answer PING (ConnectionError)")

    it.changes["ping_redis"] = down
    assert (it.only("limits").verdict, "does not answer PING" in it.only("limits").seen) == (Verdict.BROKEN, True)


def test_a_limit_that_is_off_is_said_and_no_redis_is_asked(it: Installation) -> None:
    it.environment |= {"AUTHSVC_LIMITS_URL": "redis://localhost", "AUTHSVC_LOGIN_RATE": "off"}
    assert (it.only("limits").verdict, "off" in it.only("limits").seen) == (Verdict.OK, True)


# ---- where it listens ---------------------------------------------------------------------------


def test_a_free_port_is_ok_and_every_interface_is_said(it: Installation) -> None:
    assert it.only("listener").seen == "127.0.0.1 port 3000 is free: no service runs here"
    it.environment["AUTHSVC_HOST"] = "0.0.0.0"
    assert "every interface" in it.only("listener").seen


def test_a_service_that_runs_is_shown_with_its_generation_and_key(it: Installation) -> None:
    it.serves()
    finding = it.only("listener")
    assert finding.verdict is Verdict.OK
    assert f"ready, generation 1, {it.signs} signs" in finding.seen


@pytest.mark.parametrize(
    ("ready", "verdict", "seen"),
    [
        ({"code": "keys_unusable"}, "broken", "cannot sign"),
        ({"keys": "not reloaded"}, "warning", "goes on with older keys"),
        ({"store": "unavailable"}, "broken", "has no side store"),
        ({"wechat": "wechat_timeout"}, "warning", "wechat_timeout"),
        ({"wechat": "SECRETMARKER"}, "warning", "an error"),
        ({"generation": 2}, "warning", "generation 2 of the keys, and the folder 1"),
        ({"kid": "x" * 43}, "broken", "a key that the folder does not have"),
    ],
)
def test_what_is_amiss_with_a_service_that_runs_is_told(
    it: Installation, ready: dict[str, object], verdict: str, seen: str
) -> None:
    it.serves(**ready)
    finding = it.amiss("listener")
    assert (finding.verdict, seen in finding.seen, finding.mend != "") == (verdict, True, True), finding


def test_a_service_that_signs_with_the_standby_is_not_on_the_keys_that_are_here(it: Installation) -> None:
    standby = it.keyset.standby(now=NOW)
    assert standby is not None
    it.serves(kid=standby.id)
    assert it.amiss("listener").verdict is Verdict.WARNING


def test_a_rotation_that_comes_in_between_is_looked_at_again(it: Installation) -> None:
    it.serves()
    it.clock.at += DAY_S
    answers = [it.replies["http://service/readyz"]]
    it.change(lambda keyset, new: rotate(keyset, new, now=it.clock.at, alg=None))
    it.serves()
    answers.append(it.replies["http://service/readyz"])
    assert answers[0] != answers[1]

    def ask(url: str, within_s: float) -> Answer:
        found = answers.pop(0) if url.endswith("/readyz") else it._ask(url, within_s)
        assert isinstance(found, Answer)
        return found

    it.changes["ask"] = ask
    assert it.only("listener").verdict is Verdict.OK
    assert answers == []


@pytest.mark.parametrize(
    "replies",
    [
        {"healthz": _reply({"status": "ok"}), "readyz": _reply({"status": "ready"})},
        {"healthz": _reply({"status": "ok"}), "readyz": Answer(200, b"<html>", None)},
        {"healthz": _reply({"status": "fine"}), "readyz": _reply({})},
        {"healthz": _reply({"status": "ok"}, status=404), "readyz": _reply({"code": "keys_unusable"})},
        {"healthz": _reply({"status": "ok"}), "readyz": _reply({"generation": True, "kid": "x" * 43})},
        {"healthz": _reply({"status": "ok"}), "readyz": _reply({"generation": 1, "kid": "SECRETMARKER"})},
    ],
)
def test_a_port_that_something_else_has_is_broken(it: Installation, replies: dict[str, Answer]) -> None:
    it.changes["free_address"] = _taken
    it.replies |= {f"http://service/{name}": reply for name, reply in replies.items()}
    finding = it.only("listener")
    assert (finding.verdict, "no authsvc" in finding.seen) == (Verdict.BROKEN, True)
    assert "AUTHSVC_PORT" in finding.mend


def test_a_port_whose_holder_does_not_answer_is_broken(it: Installation) -> None:
    it.changes["free_address"] = _taken
    it.replies["http://service/healthz"] = NoAnswer("no answer within 5 s")
    finding = it.only("listener")
    assert (finding.verdict, "in use" in finding.seen, "no answer within 5 s" in finding.seen) == (
        *(Verdict.BROKEN, True, True),
    )


# ---- the issuer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "verdict", "seen"),
    [
        (NoAnswer("no connection"), "warning", "cannot be reached from here: no connection"),
        (_reply({}, status=502), "warning", "answers 502"),
        (_reply({}, status=404), "broken", "answers 404 and no JWKS"),
        (_reply({}, status=301), "broken", "answers 301 and no JWKS"),
        (_reply({"keys": "x"}), "broken", "no JWKS"),
        (_reply({"keys": [{"kid": "another"}, {"kid": ["x"]}, "x"]}), "broken", "verifiers refuse its tokens"),
        (Answer(200, b"\xff", None), "broken", "no JWKS"),
    ],
)
def test_the_issuer_has_to_publish_the_key_that_signs(
    it: Installation, answer: Answer | NoAnswer, verdict: str, seen: str
) -> None:
    it.replies[f"{ISSUER}/.well-known/jwks.json"] = answer
    finding = it.only("issuer")
    assert (finding.verdict, seen in finding.seen, finding.mend != "") == (verdict, True, True), finding


def test_without_keys_the_issuer_is_only_looked_at(it: Installation) -> None:
    it.publishes("another")
    (it.folder.path / MANIFEST).write_text("{")
    assert (it.only("issuer").verdict, "is not known" in it.only("issuer").seen) == (Verdict.OK, True)


def test_a_service_that_signs_with_a_revoked_key_is_broken(it: Installation) -> None:
    it.serves()
    was = it.signs
    it.change(lambda keyset, new: revoke(keyset, new, was, reason="test", now=NOW, alg=None))
    assert "does not have, or not any more" in it.amiss("listener").seen
