"""What a fleet in the open needs: identities that are renewed, agents of known versions, retention."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from edgewise_server.models import base

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # identities that are renewed, replaced, decommissioned, and found to be cloned
    with op.batch_alter_table("enrolments") as batch:
        batch.add_column(sa.Column("replaces", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("devices") as batch:
        for name, length in (("key_sha256", 64), ("next_key_sha256", 64), ("next_serial", 40)):
            batch.add_column(sa.Column(name, sa.String(length=length), nullable=False, server_default=""))
        for name in ("next_not_after", "decommission_by", "decommissioned_at", "cloned_at"):
            batch.add_column(sa.Column(name, base.UtcDateTime(), nullable=True))
        for name in ("births", "cloned_instances"):
            batch.add_column(sa.Column(name, base.JsonValue(), nullable=False, server_default="[]"))

    # files that only distrusted targets name are collected; the row stays, since a version is never used again
    with op.batch_alter_table("blobs") as batch:
        batch.add_column(sa.Column("dropped", sa.Boolean(), nullable=False, server_default=sa.false()))

    # streams wait for what a device still holds, however long it takes, and no longer for a time
    with op.batch_alter_table("stream_cursors") as batch:
        batch.add_column(sa.Column("highest", sa.BigInteger(), nullable=False, server_default="0"))
        batch.drop_index("ix_stream_cursors_gap_since")
        batch.drop_column("gap_since")
    op.execute(
        "UPDATE stream_cursors SET highest = COALESCE((SELECT MAX(seq) FROM messages WHERE "
        "messages.device_id = stream_cursors.device_id AND messages.stream = stream_cursors.stream), through)"
    )
    op.execute("UPDATE stream_cursors SET highest = through WHERE highest < through")

    # an index that a new row touches at its end, and not at a page for each device
    op.drop_index("ix_model_windows_device_id_model_version_received_at", "model_windows")
    op.create_index(
        "ix_model_windows_model_version_received_at", "model_windows", ["model", "version", "received_at"], unique=False
    )


def downgrade() -> None:
    op.drop_index("ix_model_windows_model_version_received_at", "model_windows")
    op.create_index(
        "ix_model_windows_device_id_model_version_received_at",
        "model_windows",
        ["device_id", "model", "version", "received_at"],
        unique=False,
    )
    with op.batch_alter_table("stream_cursors") as batch:
        batch.drop_column("highest")
        batch.add_column(sa.Column("gap_since", sa.Float(), nullable=True))
        batch.create_index("ix_stream_cursors_gap_since", ["gap_since"], unique=False)
    with op.batch_alter_table("blobs") as batch:
        batch.drop_column("dropped")
    with op.batch_alter_table("devices") as batch:
        for name in ("key_sha256", "next_key_sha256", "next_serial", "next_not_after", "decommission_by"):
            batch.drop_column(name)
        for name in ("decommissioned_at", "cloned_at", "births", "cloned_instances"):
            batch.drop_column(name)
    with op.batch_alter_table("enrolments") as batch:
        batch.drop_column("replaces")
