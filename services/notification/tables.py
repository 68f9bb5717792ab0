"""The notification service's tables."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Time,
    UniqueConstraint,
    Uuid,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

notifications = Table(
    "notifications",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("story_id", Uuid),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("read_at", DateTime(timezone=True)),
    # The columns from here on have a value of their own in no row of the former version.
    Column("target_type", Text),
    Column("target_id", Uuid),
    Column("grouped", Boolean, nullable=False, server_default=text("false")),
    Column("actors", JSONB, nullable=False, server_default=text("'[]'")),
    Column("actor_count", Integer, nullable=False, server_default=text("0")),
    Column("latest_id", Uuid),
    Column("updated_at", DateTime(timezone=True)),
    # Of title and body; the names of actors are put before the title in the same one.
    Column("language", Text, nullable=False, server_default=text("''")),
    # For the former version's list.
    Index("notifications_by_user", "user_id", "id"),
    Index("notifications_by_place", "user_id", func.coalesce(literal_column("latest_id"), literal_column("id"))),
    Index(
        "notifications_unread",
        "user_id",
        func.coalesce(literal_column("latest_id"), literal_column("id")),
        postgresql_where=text("read_at IS NULL"),
    ),
    Index(
        "notifications_open_groups",
        "user_id",
        "type",
        "target_type",
        "target_id",
        unique=True,
        postgresql_where=text("grouped AND read_at IS NULL"),
    ),
    Index("notifications_by_age", func.coalesce(literal_column("updated_at"), literal_column("created_at"))),
)

notification_actors = Table(
    "notification_actors",
    metadata,
    Column("notification_id", Uuid, ForeignKey("notifications.id", ondelete="CASCADE"), primary_key=True),
    Column("actor_id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    # A UUIDv7 of the actor's last act.
    Column("latest_id", Uuid, nullable=False),
    Index("notification_actors_latest", "notification_id", "latest_id"),
    Index("notification_actors_by_actor", "actor_id"),
)

# One row per person: its lock orders the person's changes, so their numbers have no gap.
notification_heads = Table(
    "notification_heads",
    metadata,
    Column("user_id", Uuid, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

notification_changes = Table(
    "notification_changes",
    metadata,
    Column("user_id", Uuid, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("change", Text, nullable=False),
    Column("notification_id", Uuid),
    Column("unread", Integer, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Column("before_at", DateTime(timezone=True)),
    # Random, so that a number that is given again after a restore from backup is not taken for the former one.
    Column("mark", Uuid, server_default=text("gen_random_uuid()")),
    Index("notification_changes_by_age", "occurred_at"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("event_id", Uuid, nullable=False),
    Column("channel", Text, nullable=False),
    # Which one of the channel's addresses of the person; empty where there is only one.
    Column("target", Text, nullable=False),
    # The person who is told; null for codes, for which only an address is known, which is not stored.
    Column("user_id", Uuid),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    # Why it is in this state: UPPER_SNAKE, permanent. Empty when there is nothing to say.
    Column("reason", Text, nullable=False),
    # The numbers of the other side's last reply, never its words.
    Column("answer", Text, nullable=False),
    # Attempts begun; the number of the last one is the fence of what is recorded about it.
    Column("attempts", Integer, nullable=False),
    # Attempts that ended in an error that nobody foresaw.
    Column("failures", Integer, nullable=False),
    # Attempts of unknown outcome.
    Column("unknowns", Integer, nullable=False),
    # Attempts after which another one was planned because they failed: the pauses grow by them.
    Column("setbacks", Integer, nullable=False, server_default=text("0")),
    # Claims since the last outcome: those of workers that died one after another.
    Column("unsettled", Integer, nullable=False, server_default=text("0")),
    # Claimed before others: codes and warnings.
    Column("urgent", Boolean, nullable=False),
    # The event, with its sealed parts sealed, until the state is final; until the delivery expires if it can be sent again.
    Column("event", LargeBinary),
    Column("due_at", DateTime(timezone=True), nullable=False),
    # Held by a worker until then, by Postgres's clock.
    Column("leased_until", DateTime(timezone=True)),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False),
    # Keyed digest of the address to which a mail goes; null before its first attempt.
    Column("address_digest", LargeBinary),
    # What the delivery has in common with those that a later one makes worthless, as the challenge of a code; mostly null.
    Column("series", Uuid),
    # When its event happened, which orders a series.
    Column("occurred_at", DateTime(timezone=True)),
    UniqueConstraint("event_id", "channel", "target", name="deliveries_once"),
    Index("deliveries_due", "urgent", "due_at", postgresql_where=text("state = 'QUEUED'")),
    Index("deliveries_sending", "leased_until", postgresql_where=text("state = 'SENDING'")),
    Index("deliveries_by_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
    Index("deliveries_by_series", "series", "occurred_at", postgresql_where=text("series IS NOT NULL")),
    Index("deliveries_by_target", "target", "id", postgresql_where=text("target <> ''")),
)

# What was decided about each notice on each channel, and when. Only added to, in the transaction of the decision.
delivery_steps = Table(
    "delivery_steps",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", Uuid, nullable=False),
    Column("channel", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("user_id", Uuid),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Column("decision", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Index("delivery_steps_by_event", "event_id"),
    Index("delivery_steps_by_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
)

# Addresses to which no mail goes, each by its keyed digest: addresses are not stored.
suppressions = Table(
    "suppressions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("address_digest", LargeBinary, nullable=False),
    # The person to whom the mail went that came back; null while only an address was written to.
    Column("user_id", Uuid),
    Column("event_id", Uuid, nullable=False),
    Column("reason", Text, nullable=False),
    # The enhanced status code that said so.
    Column("code", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("address_digest", name="suppressions_once"),
    Index("suppressions_by_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Uuid, primary_key=True),
    # The owner; null: the installation, whose webhooks are told everybody's notices.
    Column("user_id", Uuid),
    # Which one of the few that an owner may have: the constraints on it keep two calls at once from making one too many.
    Column("place", Integer, nullable=False),
    # Sealed, as the secrets are: receivers' addresses often hold a token.
    Column("url", LargeBinary, nullable=False),
    Column("description", Text, nullable=False),
    # The kinds of notices that it gets; empty: all that go by webhook.
    Column("kinds", ARRAY(Text), nullable=False),
    Column("secret", LargeBinary, nullable=False),
    # Signs beside the secret until its end, so that a receiver can change over.
    Column("former_secret", LargeBinary),
    Column("former_secret_until", DateTime(timezone=True)),
    # Why nothing is sent to it; null while it is enabled.
    Column("disabled", Text),
    # Failed attempts since the last success, and the time of the first of them.
    Column("failures", Integer, nullable=False),
    Column("failing_since", DateTime(timezone=True)),
    Column("last_failed_at", DateTime(timezone=True)),
    Column("last_failure", Text, nullable=False),
    Column("last_status", Integer, nullable=False),
    Column("last_succeeded_at", DateTime(timezone=True)),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("user_id", "place", name="webhooks_few"),
    Index("webhooks_few_of_the_installation", "place", unique=True, postgresql_where=text("user_id IS NULL")),
)

# What administrators did to webhooks of the installation, and which fields they changed. Only added to.
webhook_acts = Table(
    "webhook_acts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("webhook_id", Uuid, nullable=False),
    # Null: the administrator's account was deleted.
    Column("actor_id", Uuid),
    Column("act", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Index("webhook_acts_by_webhook", "webhook_id", "id"),
    Index("webhook_acts_by_actor", "actor_id"),
)

# What the version before `deliveries` recorded of mails; it may still run.
mails = Table(
    "mails",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    # The person to whom the mail goes; null for codes, for which only an address is known, which is not stored.
    Column("user_id", Uuid),
    Column("template", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False),
    Index("mails_by_user", "user_id", postgresql_where=text("user_id IS NOT NULL")),
)

preferences = Table(
    "preferences",
    metadata,
    Column("user_id", Uuid, primary_key=True),
    Column("language", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("paused_until", DateTime(timezone=True)),
    Column("quiet_start", Time),
    Column("quiet_end", Time),
    Column("digest_time", Time, nullable=False),
    Column("digest_weekday", SmallInteger, nullable=False),
    Column("mails_per_day", Integer, nullable=False),
    # The timing by kind and channel: {"STORY_READY": {"EMAIL": "DAILY"}}. In the row, because every mail reads it.
    Column("choices", JSONB, nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False),
)

# When mails went out to a person, those about security left out; for the throttle.
counted_mails = Table(
    "counted_mails",
    metadata,
    Column("user_id", Uuid, primary_key=True),
    Column("event_id", Uuid, primary_key=True),
    Column("sent_at", DateTime(timezone=True), nullable=False),
)

# Which digest the mail of an event waits for. The digest is a delivery too, under an id of its own as its event's.
digest_items = Table(
    "digest_items",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("digest_id", Uuid, nullable=False),
    Column("user_id", Uuid, nullable=False),
    Index("digest_items_by_digest", "digest_id"),
    Index("digest_items_by_user", "user_id"),
)
