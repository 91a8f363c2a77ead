"""Run by Alembic for each upgrade; authsvc.store.migrate holds the connection, the transaction and the lock."""

from __future__ import annotations

from alembic import context

from authsvc.store.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
