"""The tables of the side store, for every SQL engine. What changes here needs a migration, and another REVISION."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, LargeBinary, MetaData, SmallInteger, String, Table


def _name(length: int) -> String:
    """A name that is compared byte by byte: openids differ by case alone, which MySQL's own collations overlook."""
    return (
        String(length)
        .with_variant(String(length, collation="ascii_bin"), "mysql", "mariadb")
        .with_variant(String(length, collation="C"), "postgresql")
    )


def _text(length: int) -> String:
    """Words of an operator, in any script, also in a database whose own character set is an old one."""
    return String(length).with_variant(String(length, collation="utf8mb4_bin"), "mysql", "mariadb")


METADATA: Final = MetaData()

REVISION: Final = "0004"
"""The newest migration."""

LOGINS: Final = Table(
    "logins",
    METADATA,
    Column("appid", _name(64), primary_key=True),
    Column("openid", _name(128), primary_key=True),
    Column("sid", _name(64), primary_key=True),
    Column("sealed_session_key", LargeBinary, nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_logins_expires_at", "expires_at"),
    # The key is most of the row: a rowid would keep it twice.
    sqlite_with_rowid=False,
)

USERS: Final = Table(
    "users",
    METADATA,
    Column("appid", _name(64), primary_key=True),
    Column("openid", _name(128), primary_key=True),
    Column("state", SmallInteger, nullable=False),
    Column("unionid", _name(128), nullable=True),
    Column("first_login_at", BigInteger, nullable=False),
    Column("last_login_at", BigInteger, nullable=False),
    Column("state_since", BigInteger, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

BANS: Final = Table(
    "bans",
    METADATA,
    Column("digest", _name(32), primary_key=True),
    Column("since", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

AUDIT: Final = Table(
    "audit",
    METADATA,
    Column("id", _name(32), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", _text(128), nullable=False),
    Column("what", _name(16), nullable=False),
    Column("appid", _name(64), nullable=False),
    Column("digest", _name(32), nullable=False),
    Column("reason", _text(200), nullable=False),
    sqlite_with_rowid=False,
)

REVOKED_KEYS: Final = Table(
    "revoked_keys",
    METADATA,
    Column("key_id", _name(64), primary_key=True),
    Column("revoked_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

SHARED: Final = Table(
    "shared_values",
    METADATA,
    Column("name", _name(128), primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
