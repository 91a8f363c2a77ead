"""The side store in Redis or Valkey: one server, with Sentinels, or a Cluster.

    <prefix>user:{digest}        hash: who it is, state, unionid, first and last login
    <prefix>logins:{digest}      sorted set: the sids of the user's logins, by their starts
    <prefix>login:{digest}:sid   hash: the login; ends by itself
    <prefix>ban:{digest}         of a user who is forgotten
    <prefix>shared:{name}        hash: a shared value; ends by itself
    <prefix>audit, <prefix>revoked_keys, <prefix>schema

The digest, and not the openid, is in the names: it may stay, and it keeps what is a user's in one slot of a cluster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from threading import BoundedSemaphore, Lock
from typing import Any, Final

from redis import RedisCluster
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

import authsvc.store.redisscripts as scripts
from authsvc.errors import StoreUnavailable, UserBanned
from authsvc.store.protocol import Identify
from authsvc.store.redisclient import redis_client
from authsvc.store.redisurl import RedisAddress
from authsvc.store.rows import (
    KEPT_LOGINS,
    STATE_BANNED,
    AuditLine,
    Ban,
    Census,
    LoginRow,
    RevokedKey,
    Row,
    SharedValue,
    UserId,
    UserRow,
    banned_row,
)

SCHEMA: Final = b"1"

# Connections of one process. A put takes a tenth of a millisecond there: a few serve all threads.
_CONNECTIONS: Final = 8
_PLACE_WAIT_S: Final = 3.0
_SCANNED_AT_ONCE: Final = 500
# Keys that a server looks at while everybody else waits (well under a millisecond), and looks of one call.
_LONGEST_SCAN: Final = 2_000
_SCANS_A_CALL: Final = 100
_PING_MS: Final = 1_000
_ERROR_NAME: Final = re.compile(r"[A-Z]{3,20}")


class RedisStore:
    """A Store in the Redis at `address`; all keys begin with its prefix."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._prefix = address.prefix
        self._kept: Any = None
        self._lock = Lock()
        self._places = BoundedSemaphore(_CONNECTIONS)

    # ---- a user's logins ----

    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        user = login.user
        keys = [self._user(user), self._ban(user), self._logins(user), self._login(user, login.sid)]
        values = [user.appid, user.openid, *_login_values(login), unionid or "", self._login(user, ""), KEPT_LOGINS]
        with self.client() as client:
            answer = _run(client, scripts.PUT, keys, values)
        if answer == b"banned":
            raise UserBanned("this user is banned")
        _check_kept(answer)

    def logins(self, user: UserId, *, now: int) -> tuple[LoginRow, ...]:
        with self.client() as client:
            return tuple(row for row in self._read_logins(client, user) if row.expires_at > now)

    def replace_logins(self, user: UserId, gone: Sequence[LoginRow], *, by: LoginRow | None) -> None:
        values: list[Any] = [self._login(user, ""), len(gone)]
        for login in gone:
            values += [login.sid, login.sealed_session_key]
        if by is not None:
            values += _login_values(by)
        with self.client() as client:
            _check_kept(_run(client, scripts.REPLACE, [self._user(user), self._logins(user)], values))

    # ---- a user: the line first, so that nothing is ever done without one ----

    def user(self, user: UserId) -> UserRow | None:
        with self.client() as client:
            return self._read_user(client, user)

    def ban(self, user: UserId, *, line: AuditLine) -> bool:
        with self.client() as client:
            row = self._read_user(client, user)
            if row is not None and row.state == STATE_BANNED:
                return False
            self._add(client, line)
            _run(client, scripts.BAN, [self._user(user), self._ban(user)], [user.appid, user.openid, line.at])
            return True

    def unban(self, user: UserId, *, line: AuditLine) -> bool:
        with self.client() as client:
            row = self._read_user(client, user)
            if row is None or row.state != STATE_BANNED:
                return False
            self._add(client, line)
            _run(client, scripts.UNBAN, [self._user(user), self._ban(user)], [line.at])
            return True

    def forget(self, user: UserId, *, line: AuditLine) -> int | None:
        with self.client() as client:
            if not client.exists(self._user(user)):
                return None
            self._add(client, line)
            keys = [self._user(user), self._ban(user), self._logins(user)]
            return int(_run(client, scripts.FORGET, keys, [self._login(user, "")]))

    def note(self, line: AuditLine) -> None:
        with self.client() as client:
            self._add(client, line)

    # ---- values that processes share ----

    def shared(self, name: str, *, now: int) -> SharedValue | None:
        with self.client() as client:
            value, expires_at = client.hmget(self._shared(name), "value", "expires_at")
        found = None if value is None else SharedValue(name, value, int(expires_at))
        return found if found is not None and found.expires_at > now else None

    def share(self, value: SharedValue) -> None:
        with self.client() as client:
            _run(client, scripts.SHARE, [self._shared(value.name)], [value.value, value.expires_at])

    def share_first(self, value: SharedValue, *, now: int) -> bool:
        with self.client() as client:
            values = [value.value, value.expires_at, now]
            return bool(_run(client, scripts.SHARE_FIRST, [self._shared(value.name)], values))

    def unshare(self, value: SharedValue) -> None:
        with self.client() as client:
            _run(client, scripts.UNSHARE, [self._shared(value.name)], [value.value, value.expires_at])

    # ---- keys ----

    def note_revoked_keys(self, revoked: Mapping[str, int]) -> None:
        with self.client() as client:
            for key_id, at in revoked.items():
                client.hsetnx(self._key("revoked_keys"), key_id, at)

    def revoked_keys(self) -> dict[str, int]:
        with self.client() as client:
            return {key_id.decode(): int(at) for key_id, at in client.hgetall(self._key("revoked_keys")).items()}

    def drop_sealed(self, sealed_start: bytes) -> int:
        dropped = 0
        for keys in self._found("shared:"):
            for key, (value,) in self._fields(keys, "value"):
                if value is not None and value.startswith(sealed_start):
                    with self.client() as client:
                        client.delete(key)
        for keys in self._found("login:"):
            for key, (sealed,) in self._fields(keys, "sealed"):
                if sealed is not None and sealed.startswith(sealed_start):
                    user, _, sid = key.decode().removeprefix(self._key("login:")).rpartition(":")
                    index = self._key(f"logins:{user}")
                    with self.client() as client:
                        dropped += int(_run(client, scripts.DROP_LOGIN, [key, index], [sid, sealed]))
        return dropped

    # ---- the store as a whole ----

    def purge(self, *, now: int, at_most: int) -> int:  # noqa: ARG002 - Redis ends rows by itself
        return 0

    def census(self, *, now: int, start_bytes: int) -> Census:
        users = banned = logins = ended = 0
        by_start: dict[bytes, int] = {}
        oldest: int | None = None
        for keys in self._found("user:"):
            for _, (state,) in self._fields(keys, "state"):
                users += state is not None
                banned += state == b"%d" % STATE_BANNED
        for keys in self._found("login:"):
            for _, (sealed, created, expires) in self._fields(keys, "sealed", "created_at", "expires_at"):
                if sealed is None:
                    continue
                logins += 1
                ended += int(expires) <= now
                oldest = min(int(created), oldest or int(created))
                by_start[sealed[:start_bytes]] = by_start.get(sealed[:start_bytes], 0) + 1
        forgotten = sum(len(keys) for keys in self._found("ban:"))
        with self.client() as client:
            servers, memory = infos(client, "server"), infos(client, "memory")
            lines = client.hlen(self._key("audit"))
        name, version = ("Valkey", servers[0].get("valkey_version")), ("Redis", servers[0].get("redis_version"))
        return Census(
            engine=" ".join(str(part) for part in (name if name[1] else version)),
            size_bytes=sum(int(each["used_memory"]) for each in memory),
            users=users,
            banned=banned + forgotten,
            logins=logins,
            ended_logins=ended,
            logins_by_start=by_start,
            oldest_login_at=oldest,
            audit_lines=lines,
        )

    def page(self, kind: type[Row], *, after: str, at_most: int, identify: Identify) -> tuple[list[Row], str | None]:
        """`at_most` is what Redis takes it for (SCAN COUNT)."""
        with self.client() as client:
            if kind is AuditLine or kind is RevokedKey:
                name = "audit" if kind is AuditLine else "revoked_keys"
                servers, position = _servers(client), 0
                if after.startswith(f"{servers}/"):
                    position = int(after.rpartition("/")[2])
                position, found = client.hscan(self._key(name), position, count=at_most)
                read = _line if kind is AuditLine else _revoked_key
                rows = [read(key, text) for key, text in found.items()]
                is_end = position == 0 and _servers(client) == servers
                return rows, None if is_end else f"{servers}/{position}"
            keys, later = self._scan(client, "ban:" if kind is Ban else "user:", after=after, count=at_most)
            rows = []
            for key in keys:
                if kind is Ban:
                    since = client.get(key)
                    rows += [Ban(_digest(key), int(since))] if since is not None else []
                    continue
                row = _user_row(client.hgetall(key), identify)
                if row is not None:
                    rows += [row] if kind is UserRow else self._read_logins(client, row.user)
            return rows, later

    def merge(self, rows: Sequence[Row]) -> None:
        with self.client() as client:
            for row in rows:
                self._merge(client, row)

    def ping(self) -> None:
        with self.client() as client:
            client.set(self._key("ping"), b"", px=_PING_MS)

    def close(self) -> None:
        with self._lock:
            if self._kept is not None:
                self._kept.close()

    # ---- keys ----

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _user(self, user: UserId) -> str:
        return self._key(f"user:{{{user.digest}}}")

    def _ban(self, user: UserId) -> str:
        return self._key(f"ban:{{{user.digest}}}")

    def _logins(self, user: UserId) -> str:
        return self._key(f"logins:{{{user.digest}}}")

    def _login(self, user: UserId, sid: str) -> str:
        return self._key(f"login:{{{user.digest}}}:{sid}")

    def _shared(self, name: str) -> str:
        return self._key(f"shared:{name}")

    # ---- rows ----

    def _read_user(self, client: Any, user: UserId) -> UserRow | None:
        row = _user_row(client.hgetall(self._user(user)), lambda _appid, _openid: user)
        since = client.get(self._ban(user))
        return row if since is None else banned_row(user, row, since=int(since))

    def _read_logins(self, client: Any, user: UserId) -> list[LoginRow]:
        found = _run(client, scripts.LOGINS, [self._logins(user)], [self._login(user, "")])
        return [LoginRow(user, sid.decode(), sealed, *map(int, times)) for sid, sealed, *times in found]

    def _add(self, client: Any, line: AuditLine) -> None:
        text = json.dumps(asdict(line), ensure_ascii=False).encode()
        # Never over another; the same one is there if the answer got lost, and it is said again.
        if not client.hsetnx(self._key("audit"), line.id, text) and client.hget(self._key("audit"), line.id) != text:
            raise StoreUnavailable("the side store did not take the line: its id is taken")

    def _merge(self, client: Any, row: Row) -> None:
        match row:
            case UserRow(user=user):
                state = [row.state, row.state_since, row.unionid or "", row.first_login_at, row.last_login_at]
                _run(client, scripts.MERGE_USER, [self._user(user)], [user.appid, user.openid, *state])
            case LoginRow(user=user):
                keys = [self._login(user, row.sid), self._logins(user)]
                _run(client, scripts.MERGE_LOGIN, keys, [self._login(user, ""), *_login_values(row), KEPT_LOGINS])
            case Ban():
                client.set(self._key(f"ban:{{{row.digest}}}"), row.since, nx=True)
            case AuditLine():
                client.hsetnx(self._key("audit"), row.id, json.dumps(asdict(row), ensure_ascii=False).encode())
            case RevokedKey():
                client.hsetnx(self._key("revoked_keys"), row.id, row.revoked_at)

    # ---- all keys of a kind ----

    def _found(self, name: str) -> Iterator[list[bytes]]:
        after: str | None = ""
        while after is not None:
            with self.client() as client:
                keys, after = self._scan(client, name, after=after, count=_SCANNED_AT_ONCE)
            yield keys

    def _scan(self, client: Any, name: str, *, after: str, count: int) -> tuple[list[bytes], str | None]:
        """`after`: which servers there are, the number of the one that it is at, and where it goes on there.

        A cursor says nothing to another server: if they have changed, as after a failover, it begins again. A key may
        be found twice (SCAN). Where nothing of ours is, it goes on in longer and longer steps: `count` is of all keys,
        and a Redis may have millions of somebody else's.
        """
        nodes = _nodes(client)
        servers = _servers(client)
        were, number, cursor = after.split("/") if after else (servers, "0", "0")
        at, position = (int(number), int(cursor)) if were == servers else (0, 0)
        keys: list[bytes] = []
        for _ in range(_SCANS_A_CALL):
            where = {} if nodes[at] is None else {"target_nodes": nodes[at]}
            found, keys = client.scan(position, match=f"{self._prefix}{name}*", count=count, **where)
            position = next(iter(found.values())) if isinstance(found, dict) else found
            if position == 0:
                at += 1
            if keys or at == len(nodes):
                break
            count = max(count, min(2 * count, _LONGEST_SCAN))
        # Another one may have answered: the next call finds that these are not the servers, and begins again.
        is_end = at == len(nodes) and _servers(client) == servers
        return list(keys), None if is_end else f"{servers}/{at % len(nodes)}/{position}"

    def _fields(self, keys: Sequence[bytes], *names: str) -> list[tuple[bytes, list[Any]]]:
        with self.client() as client:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.hmget(key, *names)
            return list(zip(keys, pipeline.execute(), strict=True))

    # ---- connections ----

    @contextmanager
    def client(self) -> Iterator[Any]:
        """The client, and every error of its as StoreUnavailable."""
        if not self._places.acquire(timeout=_PLACE_WAIT_S):
            raise StoreUnavailable("the side store did not answer (all connections are taken)")
        try:
            yield self._connected()
        except (RedisError, RedisClusterException, OSError) as error:
            # `from None`: the original may carry what was sent.
            raise StoreUnavailable(f"the side store did not answer ({cause(error)})") from None
        finally:
            self._places.release()

    def _connected(self) -> Any:
        if not self._lock.acquire(timeout=_PLACE_WAIT_S):
            raise StoreUnavailable("the side store did not answer (there is no connection)")
        try:
            if self._kept is None:
                self._kept = redis_client(self._address)
            return self._kept
        finally:
            self._lock.release()


def prepared(address: RedisAddress) -> tuple[str, ...]:
    """Note what form the keys have, and see whether this Redis is fit to keep them. Returns what is worth knowing.

    Raises: StoreUnavailable if it is not, if a newer program made them, or if it does not answer.
    """
    store = RedisStore(address)
    try:
        with store.client() as client:
            return _looked_at(client, prefix=address.prefix)
    finally:
        store.close()


def is_there(address: RedisAddress) -> bool:
    """Whether there is a side store at all. Raises: StoreUnavailable."""
    store = RedisStore(address)
    try:
        with store.client() as client:
            return _check_schema(client, prefix=address.prefix)
    finally:
        store.close()


def _looked_at(client: Any, *, prefix: str) -> tuple[str, ...]:
    _check_schema(client, prefix=prefix)
    for memory in infos(client, "memory"):
        policy = str(memory.get("maxmemory_policy", ""))
        if int(memory.get("maxmemory", 0)) and policy != "noeviction":
            raise StoreUnavailable(
                f"when its memory is full, this Redis throws keys away (maxmemory-policy {policy}): bans, or the index "
                "by which a user's logins are found and erased; set noeviction, and logins are refused then instead"
            )
    client.set(f"{prefix}schema", SCHEMA, nx=True)
    if not all(int(each.get("aof_enabled", 0)) for each in infos(client, "persistence")):
        return (
            "WARNING: this Redis writes no log (appendonly no): a crash of it takes the last logins, whose users log "
            "in again, and the last bans and revoked keys, which stay lost",
        )
    return ()


def _check_schema(client: Any, *, prefix: str) -> bool:
    """False if there is no side store. Raises: StoreUnavailable for one of a newer program."""
    found = client.get(f"{prefix}schema")
    if found not in (None, SCHEMA):
        raise StoreUnavailable(
            f"the side store was made by a newer authsvc than this one (schema {found!a:.20}); run that one, or give "
            "AUTHSVC_STORE another database or prefix"
        )
    return found is not None


def cause(error: BaseException) -> str:
    """What went wrong, in words that cannot hold data: the class, and Redis's name of its error."""
    name = _ERROR_NAME.match(str(error)) if isinstance(error, RedisError) else None
    return type(error).__name__ + (f", {name[0]}" if name else "")


def infos(client: Any, section: str) -> list[dict[str, Any]]:
    """INFO of every server that holds something."""
    return [client.info(section) if node is None else node.redis_connection.info(section) for node in _nodes(client)]


def _nodes(client: Any) -> list[Any]:
    """The servers that hold something; None is the one that there is."""
    is_cluster = isinstance(client, RedisCluster)
    return sorted(client.get_primaries(), key=lambda node: str(node.name)) if is_cluster else [None]


def _servers(client: Any) -> str:
    """Which processes answer. A cursor of one says nothing to another."""
    return "+".join(str(each["run_id"])[:16] for each in infos(client, "server"))


def _run(client: Any, script: scripts.Script, keys: Sequence[str | bytes], values: Sequence[Any]) -> Any:
    try:
        return client.evalsha(script.sha, len(keys), *keys, *values)
    except NoScriptError:
        return client.eval(script.text, len(keys), *keys, *values)


def _check_kept(answer: bytes) -> None:
    if answer != b"kept":
        raise StoreUnavailable("the side store did not take the login: its sid is taken")


def _line(_id: bytes, text: bytes) -> Row:
    return AuditLine(**json.loads(text))


def _revoked_key(key_id: bytes, at: bytes) -> Row:
    return RevokedKey(key_id.decode(), int(at))


def _digest(key: bytes) -> str:
    return key.decode().rpartition("{")[2].rstrip("}")


def _login_values(login: LoginRow) -> list[Any]:
    return [login.sid, login.sealed_session_key, login.started_at_us, login.created_at, login.expires_at]


def _user_row(found: Mapping[bytes, bytes], identify: Identify) -> UserRow | None:
    if not found:
        return None
    unionid = found.get(b"unionid")
    return UserRow(
        identify(found[b"appid"].decode(), found[b"openid"].decode()),
        int(found[b"state"]),
        int(found[b"state_since"]),
        None if unionid is None else unionid.decode(),
        int(found[b"first_login_at"]),
        int(found[b"last_login_at"]),
    )
