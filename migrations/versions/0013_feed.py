"""bus: each topic's messages are numbered without gaps too, as the feed of one topic shows them.

`position` counts the messages of all topics, for whoever reads several with one cursor. A reader of
transitions alone saw gaps in it. What was published before keeps its position as its number, so cursors stay
good. The version before does not know the column: a trigger numbers what it writes.

Revision ID: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("ALTER TABLE bus.log ADD COLUMN number bigint")
    op.execute("UPDATE bus.log SET number = position")
    op.execute("""
        CREATE FUNCTION bus.number_message() RETURNS trigger LANGUAGE plpgsql VOLATILE AS $$
        BEGIN
          NEW.number := 1 + (SELECT coalesce(max(number), 0) FROM bus.log WHERE topic = NEW.topic);
          RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER number_message BEFORE INSERT ON bus.log
        FOR EACH ROW WHEN (NEW.number IS NULL) EXECUTE FUNCTION bus.number_message()
    """)
    op.execute("CREATE UNIQUE INDEX log_numbers ON bus.log (topic, number)")
    op.execute(
        "COMMENT ON COLUMN bus.log.number IS 'the message''s place among those of its topic: 1, 2, 3 ...'"
    )
