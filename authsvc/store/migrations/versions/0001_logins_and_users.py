"""Logins and users. A migration is history: it spells its columns out, because schema.py moves on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _name(length: int) -> sa.String:
    return (
        sa.String(length)
        .with_variant(sa.String(length, collation="ascii_bin"), "mysql", "mariadb")
        .with_variant(sa.String(length, collation="C"), "postgresql")
    )


def upgrade() -> None:
    op.create_table(
        "logins",
        sa.Column("appid", _name(64), primary_key=True),
        sa.Column("openid", _name(128), primary_key=True),
        sa.Column("sid", _name(64), primary_key=True),
        sa.Column("sealed_session_key", sa.LargeBinary, nullable=False),
        sa.Column("started_at_us", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_logins_expires_at", "logins", ["expires_at"])
    op.create_table(
        "users",
        sa.Column("appid", _name(64), primary_key=True),
        sa.Column("openid", _name(128), primary_key=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("unionid", _name(128), nullable=True),
        sa.Column("first_login_at", sa.BigInteger, nullable=False),
        sa.Column("last_login_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
