"""bus: messages lie in their row, and one index fewer to write.

A transition's message is a little over 2 kB, where PostgreSQL begins to compress a value and to move it
elsewhere: that cost more than writing it. The log needs no second proof that a message has one position:
the statement that gives it takes the message from the queue.

Both are safe while an older version runs: it notices neither.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("ALTER TABLE bus.outbox SET (toast_tuple_target = 8160)")
    op.execute("ALTER TABLE bus.log DROP CONSTRAINT log_outbox_id_key")
