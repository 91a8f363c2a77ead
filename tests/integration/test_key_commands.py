"""The key commands, as operators run them: what they do, what they say, how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from authsvc.jwk import public_jwk
from authsvc.keyfiles import MANIFEST, KeyFolder
from authsvc.keyset import Keyset, Kind, Lifecycle, Purpose, State
from authsvc.rotation import revoke, rotate
from authsvc.tokens import JwkSet
from tests.support.commands import audit_lines
from tests.support.service import Running, authsvc, clean_environment, service

DAY = 86_400
ROOT = Path(__file__).parents[2]
PASSPHRASE = "correct horse battery"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    """Keys that are twenty days old: the standby is known to everybody, and nothing is due."""
    return _made(tmp_path / "keys", age_s=20 * DAY)


def _made(path: Path, *, age_s: int, alg: str = "ES256", passphrase: str | None = None) -> KeyFolder:
    folder = KeyFolder(path, passphrase=passphrase)
    folder.init(
        alg=alg,
        purpose=Purpose.PRODUCTION,
        lifecycle=Lifecycle(),
        now=int(time.time()) - age_s,
        random_bytes=os.urandom,
    )
    return folder


def _json(*args: str, cwd: Path, status: int = 0, **settings: str) -> dict[str, Any]:
    done = authsvc("keys", *args, "--json", cwd=cwd, **settings)
    assert done.returncode == status, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _now() -> int:
    return int(time.time())


def _active(keyset: Keyset, kind: Kind = Kind.SIGNING) -> str:
    return keyset.active(kind, now=_now()).id


def _standby(keyset: Keyset) -> str:
    standby = keyset.standby(now=_now())
    assert standby is not None
    return standby.id


# ---- status -------------------------------------------------------------------------------------


def test_status_shows_every_key_in_full_with_what_comes_next_and_a_timeline(tmp_path: Path, keys: KeyFolder) -> None:
    done = authsvc("keys", "status", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    keyset = keys.keyset()
    for key in keyset.keys:
        assert key.id in done.stdout
    for said in ("pending (standby)", "takes over", "retires", "in 10 days", "░", "█", "now", "nothing needs you"):
        assert said in done.stdout
    assert str(tmp_path / "keys") in done.stdout


def test_on_a_narrow_terminal_a_kid_is_still_whole(tmp_path: Path, keys: KeyFolder) -> None:
    """A kid is typed in full to revoke its key."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "authsvc", "keys", "status"],
        cwd=tmp_path,
        env=clean_environment() | {"COLUMNS": "80", "TERM": "xterm"},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    said = b""
    while chunk := _read(main):
        said += chunk
    os.close(main)
    assert process.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.decode())
    for key in keys.keyset().keys:
        assert re.search(rf"^{key.kind} {key.id}\s*$", text, flags=re.MULTILINE)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # the other end is closed
        return b""


def test_status_as_json_has_every_time(tmp_path: Path, keys: KeyFolder) -> None:
    found = _json("status", cwd=tmp_path)
    assert (found["generation"], found["problems"], found["strays"]) == (1, [], [])
    assert [(key["kind"], key["state"], key["standby"]) for key in found["keys"]] == [
        ("signing", "active", False),
        ("signing", "pending", True),
        ("sealing", "active", False),
        ("index", "active", False),
    ]
    assert found["keys"][0]["next"] == {"what": "retires", "at": found["keys"][0]["activate_at"] + 30 * DAY}


NEEDS: dict[str, tuple[Callable[[KeyFolder], object], dict[str, str], str]] = {
    "an open private part": (lambda k: _part(k, "seal-").chmod(0o644), {}, "chmod 600"),
    "an open manifest": (lambda k: (k.path / MANIFEST).chmod(0o644), {}, "chmod 600"),
    "an open folder": (lambda k: k.path.chmod(0o755), {}, "chmod 700"),
    "a lost private part": (lambda k: _part(k, "sign-").unlink(), {}, "restore"),
    "a rotation that is due": (lambda k: None, {"ROTATE_EVERY": str(10 * DAY)}, "make rotate"),
    "a passphrase that protects nothing": (lambda k: None, {"KEYS_PASSPHRASE": PASSPHRASE}, "keys-passphrase"),
}


def _part(keys: KeyFolder, start: str) -> Path:
    return sorted(keys.path.glob(f"{start}*"))[0]


@pytest.mark.parametrize("name", NEEDS)
def test_status_ends_with_1_and_names_the_mend_when_something_needs_the_operator(
    tmp_path: Path, keys: KeyFolder, name: str
) -> None:
    breaks, settings, mend = NEEDS[name]
    breaks(keys)
    done = authsvc("keys", "status", cwd=tmp_path, **settings)
    assert done.returncode == 1, done.stderr
    (line, *_) = [line for line in done.stdout.splitlines() if line.startswith("NEEDS YOU")]
    assert mend in line
    assert _active(keys.keyset() if "open" not in name else _inspected(keys)) in done.stdout


def _inspected(keys: KeyFolder) -> Keyset:
    return keys.inspect(now=_now()).keyset


def test_status_of_a_folder_without_keys_says_how_to_make_some(tmp_path: Path) -> None:
    done = authsvc("keys", "status", cwd=tmp_path)
    assert (done.returncode, "make keys" in done.stderr) == (2, True)


def test_who_has_only_tried_make_run_is_shown_where_its_keys_are(tmp_path: Path) -> None:
    assert authsvc("keys", "init", cwd=tmp_path, SANDBOX="1").returncode == 0
    done = authsvc("keys", "rotate", cwd=tmp_path)
    assert (done.returncode, "AUTHSVC_SANDBOX=1" in done.stderr) == (2, True)
    assert authsvc("keys", "status", cwd=tmp_path, SANDBOX="1").returncode == 0


# ---- rotate -------------------------------------------------------------------------------------


def test_rotate_lets_a_known_standby_sign_at_once_and_a_second_run_waits_for_the_next(
    tmp_path: Path, keys: KeyFolder
) -> None:
    before = keys.keyset()
    done = authsvc("keys", "rotate", cwd=tmp_path)
    assert (done.returncode, len(audit_lines(done.stderr))) == (0, 1)
    after = keys.keyset()
    assert _active(after) == _standby(before)
    for said in (f"{_standby(before)} signs from now on", "stays good", "private part is destroyed", "leaves the JWKS"):
        assert said in done.stdout
    again = authsvc("keys", "rotate", cwd=tmp_path)
    assert again.returncode == 0
    assert "too young" in again.stdout
    assert "it will be active" in again.stdout
    assert _active(keys.keyset()) == _active(after)
    scheduled = keys.keyset().scheduled(Kind.SIGNING, now=_now())
    assert scheduled is not None
    assert (scheduled.id, scheduled.activate_at) == (_standby(after), scheduled.publish_at + 1_800)
    manifest = (tmp_path / "keys" / MANIFEST).read_bytes()
    third = authsvc("keys", "rotate", cwd=tmp_path)
    assert (third.returncode, "under way" in third.stdout) == (0, True)
    assert (tmp_path / "keys" / MANIFEST).read_bytes() == manifest


@pytest.mark.parametrize(
    "command",
    [("rotate",), ("rotate", "--early"), ("rotate-store",), ("rotate-all",), ("revoke", "--all"), ("revoke", "KID")],
    ids=" ".join,
)
def test_a_dry_run_says_what_would_happen_and_changes_nothing(
    tmp_path: Path, keys: KeyFolder, command: tuple[str, ...]
) -> None:
    before = {path.name: path.read_bytes() for path in keys.path.iterdir()}
    args = [_active(keys.keyset()) if arg == "KID" else arg for arg in command]
    done = authsvc("keys", *args, "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "DRY RUN" in done.stdout
    assert " in " in done.stdout
    assert _json(*args, "--dry-run", cwd=tmp_path)["changed"] is False
    assert {path.name: path.read_bytes() for path in keys.path.iterdir()} == before


def test_early_says_what_it_breaks_and_does_it(tmp_path: Path) -> None:
    keys = _made(tmp_path / "keys", age_s=60)
    standby = _standby(keys.keyset())
    done = authsvc("keys", "rotate", "--early", cwd=tmp_path)
    assert done.returncode == 0
    assert "EARLY" in done.stdout
    assert "18.1 min" in done.stdout
    assert _active(keys.keyset()) == standby


def test_early_breaks_nothing_where_the_standby_is_known(tmp_path: Path, keys: KeyFolder) -> None:
    assert "EARLY" not in authsvc("keys", "rotate", "--early", cwd=tmp_path).stdout


def test_a_named_algorithm_comes_with_the_next_rotation_and_an_unnamed_one_stays(tmp_path: Path) -> None:
    keys = _made(tmp_path / "keys", age_s=20 * DAY, alg="EdDSA")
    _json("rotate", cwd=tmp_path)
    assert {key.alg for key in keys.keyset().of(Kind.SIGNING)} == {"EdDSA"}
    other = _made(tmp_path / "other", age_s=20 * DAY)
    found = _json("rotate", cwd=tmp_path, KEYS=str(other.path), ALG="RS256")
    assert "new" in found["message"]
    assert other.keyset().scheduled(Kind.SIGNING, now=_now()).alg == "RS256"  # type: ignore[union-attr]
    assert other.keyset().active(Kind.SIGNING, now=_now()).alg == "ES256"


def test_rotate_all_does_both_kinds_in_one_generation(tmp_path: Path, keys: KeyFolder) -> None:
    before = keys.keyset()
    found = _json("rotate-all", cwd=tmp_path)
    after = keys.keyset()
    assert (after.generation, found["generation"], found["active"]) == (2, 2, _standby(before))
    assert after.scheduled(Kind.SEALING, now=_now()) is not None
    assert {step["what"] for step in found["steps"]} >= {"takes_over", "retires", "published", "removed"}
    assert "under way" in authsvc("keys", "rotate-store", cwd=tmp_path).stdout


def test_tick_does_what_is_due_once(tmp_path: Path, keys: KeyFolder) -> None:
    assert _json("tick", cwd=tmp_path)["changed"] is False
    assert _json("tick", cwd=tmp_path, ROTATE_EVERY="0")["changed"] is False
    assert _json("tick", cwd=tmp_path, ROTATE_EVERY=str(10 * DAY))["changed"] is True
    assert _json("tick", cwd=tmp_path, ROTATE_EVERY=str(10 * DAY))["changed"] is False
    assert keys.keyset().generation == 2


def test_tick_refuses_to_make_keys_faster_than_they_end(tmp_path: Path, keys: KeyFolder) -> None:
    done = authsvc("keys", "tick", cwd=tmp_path, ROTATE_EVERY="60")
    assert (done.returncode, "mend: at least" in done.stderr) == (2, True)
    assert keys.keyset().generation == 1


def test_a_policy_of_more_than_ten_years_is_a_mistake(tmp_path: Path) -> None:
    done = authsvc("keys", "init", "--lead", "315360001", cwd=tmp_path)
    assert (done.returncode, "315360000" in done.stderr) == (2, True)
    assert not (tmp_path / "keys").exists()


def test_where_the_folder_is_read_only_a_rotation_is_refused(tmp_path: Path, keys: KeyFolder) -> None:
    done = authsvc("keys", "rotate", cwd=tmp_path, KEYS_GROUP_READ="1")
    assert (done.returncode, "read-only" in done.stderr) == (2, True)
    assert keys.keyset().generation == 1


# ---- revoke -------------------------------------------------------------------------------------


def _revoke(tmp_path: Path, *args: str, typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "authsvc", "keys", "revoke", *args],
        cwd=tmp_path,
        env=clean_environment(),
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("args", "wanted"), [((), "the kid"), (("--all",), "revoke all")])
def test_a_revocation_wants_to_be_confirmed_in_full(
    tmp_path: Path, keys: KeyFolder, args: tuple[str, ...], wanted: str
) -> None:
    kid = _active(keys.keyset())
    args = args or (kid,)
    for typed in ("", "y\n", f"{kid[:8]}\n", "revoke\n"):
        done = _revoke(tmp_path, *args, typed=typed)
        assert (done.returncode, "nothing was changed" in done.stderr) == (2, True)
        assert "log in again" in done.stdout
    assert keys.keyset().generation == 1
    done = _revoke(tmp_path, *args, typed=f"{kid if wanted == 'the kid' else wanted}\n")
    assert done.returncode == 0
    assert keys.keyset().generation == 2


def test_a_revocation_counts_from_its_confirmation_not_from_the_question(tmp_path: Path, keys: KeyFolder) -> None:
    """What went on while the operator was thinking would otherwise lie in the future, and be overlooked."""
    kid = _active(keys.keyset())
    process = subprocess.Popen(
        [sys.executable, "-m", "authsvc", "keys", "revoke", kid],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    asked = ""
    while "in full" not in asked:
        letter = process.stdout.read(1)
        assert letter, asked
        asked += letter
    time.sleep(2)
    answered_at = _now()
    process.communicate(f"{kid}\n", timeout=60)
    assert process.returncode == 0
    revoked = keys.keyset().key(kid)
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert revoked.revoked_at >= answered_at


def test_a_revoked_key_is_out_its_part_is_gone_and_the_exposure_is_told(tmp_path: Path, keys: KeyFolder) -> None:
    before = keys.keyset()
    kid = _active(before)
    done = authsvc("keys", "revoke", kid, "--yes", "--reason", "laptop lost", cwd=tmp_path)
    assert done.returncode == 0
    for said in ("log in again", "is revoked", "never fetch again", "18.1 min", "authsvc's Verifier"):
        assert said in done.stdout
    after = keys.load(now=_now())
    assert _active(after.keyset) == _standby(before)
    assert kid not in {jwk["kid"] for jwk in after.jwks(now=_now())["keys"]}
    assert not (keys.path / f"sign-{kid}.pem").exists()
    again = authsvc("keys", "revoke", kid, "--yes", cwd=tmp_path)
    assert (again.returncode, "revoked already" in again.stdout) == (0, True)
    assert "laptop lost" in authsvc("keys", "status", cwd=tmp_path).stdout


@pytest.mark.parametrize("kid", ["A" * 43, "abc"])
def test_an_unknown_kid_is_said_to_be_unknown(tmp_path: Path, keys: KeyFolder, kid: str) -> None:
    done = authsvc("keys", "revoke", kid, "--yes", cwd=tmp_path)
    assert (done.returncode, "keys-status" in done.stderr) == (2, True)


def test_revoke_wants_one_key_or_all(tmp_path: Path, keys: KeyFolder) -> None:
    for args in ((), ("--all", _active(keys.keyset()))):
        done = authsvc("keys", "revoke", *args, "--yes", cwd=tmp_path)
        assert (done.returncode, "KID" in done.stderr) == (2, True)
    assert keys.keyset().generation == 1


def test_revoke_all_ends_every_token_and_row_and_the_service_goes_on(tmp_path: Path, wechat: Running) -> None:
    keys = _made(tmp_path / "keys", age_s=20 * DAY)
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        tokens = [it.token(user) for user in ("user-1", "user-2")]
        before = keys.keyset()
        found = _json("revoke", "--all", "--yes", cwd=tmp_path)
        assert "Deleted 2 rows" in found["message"]
        assert [line["seconds"] for line in found["exposure"]][-1] is None
        for _ in range(10):
            for token in tokens:
                assert it.check(token) == {"is_login": False, "reason": "revoked"}
        jwks = requests.get(f"{it.url}/.well-known/jwks.json", timeout=10)
        assert not {key["kid"] for key in jwks.json()["keys"]} & {key.id for key in before.keys}
        assert "must-revalidate" in jwks.headers["Cache-Control"]
        assert it.check(it.token("user-1"))["is_login"] is True
    old = {key.id for key in before.keys if key.kind is not Kind.INDEX}
    assert {key.state(now=_now()) for key in keys.keyset().keys if key.id in old} == {State.REVOKED}
    parts = {path.name for path in keys.path.iterdir()} - {MANIFEST, ".lock"}
    assert parts == {key.file for key in keys.keyset().keys if key.id not in old}


def test_without_a_side_store_a_revocation_says_that_there_were_no_rows(tmp_path: Path, keys: KeyFolder) -> None:
    found = _json("revoke", "--all", "--yes", cwd=tmp_path)
    assert "no side store" in found["message"]
    assert not (tmp_path / "authsvc.db").exists()


def test_a_side_store_that_cannot_be_told_is_said_and_prune_does_it_later(tmp_path: Path, wechat: Running) -> None:
    keys = _made(tmp_path / "keys", age_s=20 * DAY)
    with service(tmp_path, wechat_url=wechat.url) as it:
        it.token()
    database = tmp_path / "authsvc.db"
    good = database.read_bytes()
    database.write_bytes(b"damaged " * 99)
    done = authsvc("keys", "revoke", "--all", "--yes", cwd=tmp_path)
    assert (done.returncode, "was not told" in done.stdout) == (1, True)
    assert keys.keyset().generation == 2
    database.write_bytes(good)
    assert "Deleted 1 rows" in _json("prune", cwd=tmp_path)["message"]


# ---- prune, export, drill -----------------------------------------------------------------------


def test_prune_forgets_what_has_ended(tmp_path: Path) -> None:
    keys = _made(tmp_path / "keys", age_s=40 * DAY)
    long_ago = _now() - DAY
    old = _active(keys.keyset())
    keys.change(lambda k, new: rotate(k, new, now=long_ago), now=long_ago, random_bytes=os.urandom)
    part = keys.path / f"sign-{old}.pem"
    assert part.exists()
    late = authsvc("keys", "status", cwd=tmp_path, ROTATE_EVERY="0")
    assert (late.returncode, "make keys-prune" in late.stdout) == (1, True)
    assert "Forgot 1 removed key" in _json("prune", cwd=tmp_path)["message"]
    assert not part.exists()
    assert keys.keyset().key(old) is None
    assert _json("prune", cwd=tmp_path)["changed"] is False


def test_a_private_part_that_no_manifest_names_is_told_of_and_left(tmp_path: Path, keys: KeyFolder) -> None:
    stray = keys.path / f"sign-{'A' * 43}.pem"
    stray.touch(mode=0o600)
    assert stray.name in authsvc("keys", "status", cwd=tmp_path).stdout
    assert stray.name in authsvc("keys", "prune", cwd=tmp_path).stdout
    assert stray.exists()


def test_export_writes_what_the_jwks_has_as_files_and_takes_back_what_it_has_not(
    tmp_path: Path, keys: KeyFolder
) -> None:
    target = tmp_path / "public"
    first = keys.keyset()
    assert authsvc("keys", "export", str(target), cwd=tmp_path).returncode == 0
    (target / "other.pem").touch()
    _json("revoke", _active(first), "--yes", cwd=tmp_path)
    found = _json("export", str(target), cwd=tmp_path)
    assert found["removed"] == [f"{_active(first)}.pem"]
    published = keys.load(now=_now()).jwks(now=_now())
    assert json.loads((target / "jwks.json").read_text()) == published
    JwkSet(published)
    for jwk in published["keys"]:
        path = target / f"{jwk['kid']}.pem"
        assert public_jwk(load_pem_public_key(path.read_bytes())).kid == jwk["kid"]  # type: ignore[arg-type]
        assert path.stat().st_mode & 0o777 == 0o644
    assert {path.name for path in target.iterdir()} == {*found["written"], "other.pem"}
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in target.iterdir())


@pytest.mark.parametrize("target", ["keys", "other"])
def test_public_keys_are_never_written_next_to_private_ones(tmp_path: Path, keys: KeyFolder, target: str) -> None:
    _made(tmp_path / "other", age_s=0)
    before = set((tmp_path / target).iterdir())
    done = authsvc("keys", "export", str(tmp_path / target), cwd=tmp_path)
    assert (done.returncode, "private keys" in done.stderr) == (2, True)
    assert set((tmp_path / target).iterdir()) == before


def test_the_drill_shows_who_would_refuse_genuine_tokens_and_touches_nothing(tmp_path: Path, keys: KeyFolder) -> None:
    before = {path.name: path.read_bytes() for path in keys.path.iterdir()}
    done = authsvc("keys", "drill", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "No verifier within the policy refused a genuine token" in done.stdout
    assert {path.name: path.read_bytes() for path in keys.path.iterdir()} == before
    found = _json("drill", cwd=tmp_path)
    rows = {row["name"]: row for row in found["verifiers"]}
    assert [row["refused_by_rotation"] for row in rows.values()][:-1] == [0] * (len(rows) - 1), "an old standby"
    assert rows["reads the JWKS once"]["revoked_accepted_s"] is None
    assert 0 < rows["jose, jwks-rsa (Node)"]["revoked_accepted_s"] <= 1_085


# ---- the passphrase -----------------------------------------------------------------------------


def test_under_a_passphrase_no_private_part_can_be_read_without_it(tmp_path: Path, keys: KeyFolder) -> None:
    (tmp_path / "new").write_text(PASSPHRASE + "\n")
    before = {path: path.read_bytes() for path in keys.path.glob("*-*")}
    done = authsvc("keys", "passphrase", "--new-file", str(tmp_path / "new"), cwd=tmp_path)
    assert (done.returncode, len(audit_lines(done.stderr))) == (0, 1)
    assert "restarted" in done.stdout
    assert not any(path.exists() for path in before), "the old files are gone"
    contents = [path.read_bytes() for path in keys.path.glob("*-*")]
    assert len(contents) == 4
    assert all(b"ENCRYPTED" in data or b"scrypt" in data for data in contents)
    for old in before.values():
        secret = old.replace(b"\n", b"").split(b"-----")[2 if b"PRIVATE" in old else 0]
        assert not any(secret in data.replace(b"\n", b"") for data in contents)
    ring = KeyFolder(keys.path, passphrase=PASSPHRASE).load(now=_now())
    assert ring.prove_signing(now=_now()) == _active(ring.keyset)
    for wrong, mend in ((None, "set AUTHSVC_KEYS_PASSPHRASE"), ("wrong horse battery", "another AUTHSVC_KEYS_PASSPH")):
        settings = {"KEYS_PASSPHRASE": wrong} if wrong else {}
        status = authsvc("keys", "status", cwd=tmp_path, **settings)
        assert (status.returncode, mend in status.stdout) == (1, True)
        assert PASSPHRASE not in status.stdout
    pem = next(keys.path.glob("sign-*"))
    command = ["openssl", "pkey", "-in", str(pem), "-passin", f"pass:{PASSPHRASE}", "-noout"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_service_runs_rotates_and_restarts_under_a_passphrase(tmp_path: Path, wechat: Running) -> None:
    keys = _made(tmp_path / "keys", age_s=20 * DAY, passphrase=PASSPHRASE)
    with service(tmp_path, wechat_url=wechat.url, KEYS_PASSPHRASE=PASSPHRASE) as it:
        token = it.token()
        rotated = _json("rotate", cwd=tmp_path, KEYS_PASSPHRASE=PASSPHRASE)
        give_up_at = time.monotonic() + 20
        while requests.get(f"{it.url}/readyz", timeout=10).json()["kid"] != rotated["active"]:
            assert time.monotonic() < give_up_at, it.output()
            time.sleep(0.1)
        assert it.check(token)["is_login"] is True
        assert PASSPHRASE not in it.output()
    assert all(b"ENCRYPTED" in path.read_bytes() for path in keys.path.glob("sign-*"))
    with service(tmp_path, wechat_url=wechat.url, KEYS_PASSPHRASE=PASSPHRASE) as it:
        assert it.check(token)["is_login"] is True


def test_a_passphrase_can_be_taken_away_again_and_a_short_one_is_refused(tmp_path: Path) -> None:
    keys = _made(tmp_path / "keys", age_s=0, passphrase=PASSPHRASE)
    (tmp_path / "new").write_text("short")
    short = authsvc("keys", "passphrase", "--new-file", str(tmp_path / "new"), cwd=tmp_path, KEYS_PASSPHRASE=PASSPHRASE)
    assert (short.returncode, "12" in short.stderr) == (2, True)
    done = authsvc("keys", "passphrase", "--remove", cwd=tmp_path, KEYS_PASSPHRASE=PASSPHRASE)
    assert done.returncode == 0
    KeyFolder(keys.path).load(now=_now())
    again = authsvc("keys", "passphrase", "--remove", cwd=tmp_path)
    assert (again.returncode, "nothing was changed" in again.stdout) == (0, True)


# ---- an old backup ------------------------------------------------------------------------------


def test_an_old_backup_with_a_revoked_key_does_not_start_until_it_is_revoked_again(
    tmp_path: Path, wechat: Running
) -> None:
    keys = _made(tmp_path / "keys", age_s=20 * DAY)
    backup = {path.name: path.read_bytes() for path in keys.path.iterdir()}
    stolen = _active(keys.keyset())
    with service(tmp_path, wechat_url=wechat.url) as it:
        token = it.token()
    assert authsvc("keys", "revoke", stolen, "--yes", cwd=tmp_path).returncode == 0
    for path in keys.path.iterdir():
        path.unlink()
    for name, data in backup.items():
        (keys.path / name).write_bytes(data)
        (keys.path / name).chmod(0o600)
    status = authsvc("keys", "status", cwd=tmp_path)
    assert (status.returncode, "old backup" in status.stdout) == (1, True)
    settings = {"APPID": "wx1234567890abcdef", "SECRET": "s", "ISSUER": "https://auth.example.com"}
    done = authsvc("serve", cwd=tmp_path, **settings)
    assert (done.returncode, "old backup" in done.stderr, stolen in done.stderr) == (2, True, True)
    assert authsvc("keys", "revoke", stolen, "--yes", cwd=tmp_path).returncode == 0
    with service(tmp_path, wechat_url=wechat.url) as it:
        assert it.check(token) == {"is_login": False, "reason": "revoked"}


# ---- the audit log ------------------------------------------------------------------------------


def test_what_a_command_did_to_keys_is_one_line_of_the_audit_log(tmp_path: Path, keys: KeyFolder) -> None:
    (tmp_path / "new").write_text(PASSPHRASE)
    old, standby = _active(keys.keyset()), _standby(keys.keyset())
    commands = {
        ("rotate",): "keys_rotated",
        ("rotate-store",): "keys_rotated",
        ("revoke", old, "--yes", "--reason", "stolen: 3 of 4"): "keys_revoked",
        ("passphrase", "--new-file", str(tmp_path / "new")): "keys_rewritten",
    }
    found: list[dict[str, Any]] = []
    for command, event in commands.items():
        done = authsvc("keys", *command, "--json", cwd=tmp_path)
        (line,) = audit_lines(done.stderr)
        assert (line["event"], line["generation"], line["level"]) == (event, len(found) + 2, "info")
        assert line["by"].endswith(f"@{socket.gethostname()}")
        assert json.loads(done.stdout)["generation"] == line["generation"]
        found.append(line)
    assert found[0]["kid"] == standby
    assert f"takes_over {standby}" in found[0]["steps"]
    assert f"retires {old}" in found[0]["steps"]
    assert f"revoked {old}: stolen: 3 of 4" in found[2]["steps"]
    assert PASSPHRASE not in str(found)


def test_where_nothing_was_changed_there_is_no_line(tmp_path: Path, keys: KeyFolder) -> None:
    authsvc("keys", "rotate-store", cwd=tmp_path)
    for command in ("init", "status", "tick", "prune", "rotate-store", "rotate --dry-run", "revoke --all --dry-run"):
        done = authsvc("keys", *command.split(), cwd=tmp_path)
        assert (done.returncode, audit_lines(done.stderr)) == (0, []), command


def test_the_first_keys_have_a_line_too(tmp_path: Path) -> None:
    (line,) = audit_lines(authsvc("keys", "init", cwd=tmp_path).stderr)
    assert (line["event"], line["generation"]) == ("keys_made", 1)
    assert f"takes_over {line['kid']}" in line["steps"]


def test_on_a_terminal_the_line_is_for_people(tmp_path: Path, keys: KeyFolder) -> None:
    main, terminal = pty.openpty()
    with open(terminal, "wb") as stderr:
        command = [sys.executable, "-m", "authsvc", "keys", "rotate"]
        subprocess.run(
            command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=stderr, check=True
        )
    said = b""
    while chunk := _read(main):
        said += chunk
    os.close(main)
    assert b"keys_rotated" in said
    assert b"\x1b[" in said
    assert b"{" not in said


# ---- make ---------------------------------------------------------------------------------------


def test_every_command_on_keys_has_a_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    listed = authsvc("keys", "--help", cwd=ROOT).stdout.split("Commands:")[1]
    for name in re.findall(r"^  ([a-z-]+)", listed, flags=re.MULTILINE):
        assert re.search(rf"authsvc keys {name}\b", makefile), name
    assert "authsvc keys revoke --all" in makefile


def test_a_second_revocation_by_hand_of_the_same_kid_is_harmless(keys: KeyFolder) -> None:
    kid = _active(keys.keyset())
    for _ in range(2):
        keys.change(lambda k, new: revoke(k, new, kid, now=_now(), reason="x"), now=_now(), random_bytes=os.urandom)
    assert keys.keyset().generation == 2
