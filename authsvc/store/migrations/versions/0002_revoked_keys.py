"""Revoked keys: what a key folder restored from an old backup does not know."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    name = (
        sa.String(64)
        .with_variant(sa.String(64, collation="ascii_bin"), "mysql", "mariadb")
        .with_variant(sa.String(64, collation="C"), "postgresql")
    )
    op.create_table(
        "revoked_keys",
        sa.Column("key_id", name, primary_key=True),
        sa.Column("revoked_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
