"""Bans of users who are forgotten, and the audit log: who did what to a user."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def _name(length: int) -> sa.String:
    return (
        sa.String(length)
        .with_variant(sa.String(length, collation="ascii_bin"), "mysql", "mariadb")
        .with_variant(sa.String(length, collation="C"), "postgresql")
    )


def _text(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="utf8mb4_bin"), "mysql", "mariadb")


# Not on MySQL and MariaDB, which let only administrators make triggers where a binary log is written.
_APPEND_ONLY = {
    "sqlite": (
        "CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'audit lines are not changed'); END",
        "CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'audit lines are not deleted'); END",
        # INSERT OR REPLACE
        "CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit "
        "WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) "
        "BEGIN SELECT RAISE(ABORT, 'audit lines are not changed'); END",
    ),
    "postgresql": (
        "CREATE OR REPLACE FUNCTION authsvc_audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'audit lines are not changed or deleted'; END $$",
        "CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit "
        "FOR EACH ROW EXECUTE FUNCTION authsvc_audit_is_append_only()",
        "CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION authsvc_audit_is_append_only()",
    ),
}


def upgrade() -> None:
    # MySQL commits each step by itself: what an upgrade that was killed has done is not done again.
    there = sa.inspect(op.get_bind())
    if "state_since" not in {column["name"] for column in there.get_columns("users")}:
        op.add_column("users", sa.Column("state_since", sa.BigInteger, nullable=False, server_default="0"))
    if not there.has_table("bans"):
        _create_bans()
    if not there.has_table("audit"):
        _create_audit()


def _create_bans() -> None:
    op.create_table(
        "bans",
        sa.Column("digest", _name(32), primary_key=True),
        sa.Column("since", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _name(32), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", _text(128), nullable=False),
        sa.Column("what", _name(16), nullable=False),
        sa.Column("appid", _name(64), nullable=False),
        sa.Column("digest", _name(32), nullable=False),
        sa.Column("reason", _text(200), nullable=False),
        sqlite_with_rowid=False,
    )
    for statement in _APPEND_ONLY.get(op.get_bind().dialect.name, ()):
        op.execute(statement)
