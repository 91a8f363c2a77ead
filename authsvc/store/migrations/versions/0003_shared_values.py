"""Shared values: WeChat's access tokens, sealed, for all processes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    name = (
        sa.String(128)
        .with_variant(sa.String(128, collation="ascii_bin"), "mysql", "mariadb")
        .with_variant(sa.String(128, collation="C"), "postgresql")
    )
    op.create_table(
        "shared_values",
        sa.Column("name", name, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
