CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE users (
    id UUID NOT NULL, 
    email TEXT NOT NULL, 
    email_canonical TEXT NOT NULL, 
    username TEXT, 
    username_canonical TEXT, 
    first_name TEXT NOT NULL, 
    last_name TEXT NOT NULL, 
    preferences TEXT[] NOT NULL, 
    role TEXT NOT NULL, 
    password_hash TEXT NOT NULL, 
    password_changed_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (id), 
    CONSTRAINT users_role_known CHECK (role IN ('USER', 'ADMIN')), 
    CONSTRAINT users_email_unique UNIQUE (email_canonical), 
    CONSTRAINT users_username_unique UNIQUE (username_canonical)
);

CREATE TABLE registrations (
    id UUID NOT NULL, 
    email TEXT NOT NULL, 
    email_canonical TEXT NOT NULL, 
    username TEXT, 
    first_name TEXT NOT NULL, 
    last_name TEXT NOT NULL, 
    preferences TEXT[] NOT NULL, 
    password_hash TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (id)
);

CREATE INDEX registrations_by_email ON registrations (email_canonical);

CREATE INDEX registrations_by_expiry ON registrations (expires_at);

CREATE TABLE sessions (
    id UUID NOT NULL, 
    user_id UUID NOT NULL, 
    device_name TEXT NOT NULL, 
    user_agent TEXT NOT NULL, 
    ip TEXT NOT NULL, 
    methods TEXT[] NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    last_used_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    ends_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    generation INTEGER NOT NULL, 
    nonce BYTEA NOT NULL, 
    token_digest BYTEA NOT NULL, 
    rotated_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    repeats INTEGER NOT NULL, 
    revoked_at TIMESTAMP WITH TIME ZONE, 
    revoke_reason TEXT, 
    PRIMARY KEY (id), 
    CONSTRAINT sessions_revoked_for_a_reason CHECK ((revoked_at IS NULL) = (revoke_reason IS NULL)), 
    FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE INDEX sessions_by_user ON sessions (user_id);

CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE INDEX sessions_by_revocation ON sessions (revoked_at) WHERE revoked_at IS NOT NULL;

CREATE TABLE signing_keys (
    kid TEXT NOT NULL, 
    state TEXT NOT NULL, 
    public_jwk JSONB NOT NULL, 
    sealed_private_key BYTEA, 
    created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    activated_at TIMESTAMP WITH TIME ZONE, 
    retired_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (kid), 
    CONSTRAINT signing_keys_state_known CHECK (state IN ('PENDING', 'ACTIVE', 'RETIRED')), 
    CONSTRAINT signing_keys_private_until_retired CHECK ((state = 'RETIRED') = (sealed_private_key IS NULL))
);

CREATE UNIQUE INDEX signing_keys_one_pending ON signing_keys (state) WHERE state = 'PENDING';

CREATE UNIQUE INDEX signing_keys_one_active ON signing_keys (state) WHERE state = 'ACTIVE';

CREATE TABLE outbox (
    position BIGINT GENERATED ALWAYS AS IDENTITY, 
    id UUID NOT NULL, 
    key TEXT NOT NULL, 
    type TEXT NOT NULL, 
    version INTEGER NOT NULL, 
    payload BYTEA NOT NULL, 
    traceparent TEXT NOT NULL, 
    occurred_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    published_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (position), 
    UNIQUE (id)
);

CREATE INDEX outbox_unpublished ON outbox (key, position) WHERE published_at IS NULL;

INSERT INTO alembic_version (version_num) VALUES ('0001') RETURNING alembic_version.version_num;

-- Running upgrade 0001 -> 0002

ALTER TABLE users ADD COLUMN password_disabled_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE signing_keys ADD COLUMN due_at TIMESTAMP WITH TIME ZONE;

CREATE TABLE challenges (
    id UUID NOT NULL, 
    purpose TEXT NOT NULL, 
    user_id UUID, 
    email TEXT, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (id), 
    CONSTRAINT challenges_of_nobody_keep_no_address CHECK ((user_id IS NULL) = (email IS NULL)), 
    FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE INDEX challenges_by_user ON challenges (user_id);

CREATE INDEX challenges_by_expiry ON challenges (expires_at);

CREATE TABLE revocations (
    kind TEXT NOT NULL, 
    value TEXT NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    transaction BIGINT DEFAULT pg_current_xact_id()::text::bigint NOT NULL, 
    PRIMARY KEY (kind, value), 
    CONSTRAINT revocations_kind_known CHECK (kind IN ('session', 'user', 'key'))
);

CREATE INDEX revocations_by_transaction ON revocations (transaction);

CREATE INDEX revocations_by_expiry ON revocations (expires_at);

CREATE TABLE audit_entries (
    id UUID NOT NULL, 
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    action TEXT NOT NULL, 
    reason TEXT NOT NULL, 
    actor_id UUID, 
    subject_id UUID, 
    session_id UUID, 
    ip TEXT NOT NULL, 
    user_agent TEXT NOT NULL, 
    PRIMARY KEY (id)
);

CREATE INDEX audit_entries_by_subject ON audit_entries (subject_id, occurred_at);

CREATE INDEX audit_entries_by_actor ON audit_entries (actor_id);

CREATE INDEX audit_entries_by_time ON audit_entries (occurred_at);

CREATE INDEX outbox_by_key ON outbox (key);

CREATE FUNCTION keep_audit_entries() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF TG_OP = 'DELETE' THEN
            IF OLD.occurred_at > now() - interval '90 days' THEN
              RAISE EXCEPTION 'audit entries are kept for 90 days at least';
            END IF;
            RETURN OLD;
          END IF;
          IF NEW.ip <> '' OR NEW.user_agent <> ''
            OR (NEW.id, NEW.occurred_at, NEW.action, NEW.reason, NEW.actor_id, NEW.subject_id, NEW.session_id)
              IS DISTINCT FROM
              (OLD.id, OLD.occurred_at, OLD.action, OLD.reason, OLD.actor_id, OLD.subject_id, OLD.session_id) THEN
            RAISE EXCEPTION 'audit entries are not changed';
          END IF;
          RETURN NEW;
        END $$;

CREATE TRIGGER keep_audit_entries BEFORE UPDATE OR DELETE ON audit_entries FOR EACH ROW EXECUTE FUNCTION keep_audit_entries();

UPDATE alembic_version SET version_num='0002' WHERE alembic_version.version_num = '0001';

-- Running upgrade 0002 -> 0003

CREATE TABLE redis_memories (
    name TEXT NOT NULL, 
    epoch TEXT NOT NULL, 
    run_id TEXT NOT NULL, 
    repeat_since TIMESTAMP WITH TIME ZONE, 
    repeat_before TIMESTAMP WITH TIME ZONE, 
    repeat_after BIGINT, 
    repeated_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (name)
);

UPDATE alembic_version SET version_num='0003' WHERE alembic_version.version_num = '0002';

-- Running upgrade 0003 -> 0004

ALTER TABLE users ADD COLUMN session_epoch BIGINT DEFAULT 0 NOT NULL;

ALTER TABLE users ADD COLUMN kept_session_id UUID;

ALTER TABLE users ADD COLUMN unmarked_reason TEXT;

CREATE INDEX users_with_unmarked_sessions ON users (id) WHERE unmarked_reason IS NOT NULL;

ALTER TABLE sessions ADD COLUMN epoch BIGINT DEFAULT 0 NOT NULL;

DROP INDEX sessions_by_user;

CREATE INDEX sessions_by_user ON sessions (user_id, id);

CREATE INDEX sessions_unrevoked ON sessions (user_id, last_used_at) WHERE revoked_at IS NULL;

ALTER TABLE revocations ADD COLUMN before_epoch BIGINT;

ALTER TABLE revocations ADD COLUMN excepted_session_id UUID;

CREATE TABLE audit_erasures (
    subject_id UUID NOT NULL, 
    PRIMARY KEY (subject_id)
);

CREATE FUNCTION give_session_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          SELECT session_epoch INTO NEW.epoch FROM users WHERE id = NEW.user_id;
          NEW.epoch := coalesce(NEW.epoch, 0);
          RETURN NEW;
        END $$;

CREATE TRIGGER give_session_epoch BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION give_session_epoch();

UPDATE alembic_version SET version_num='0004' WHERE alembic_version.version_num = '0003';

-- Running upgrade 0004 -> 0005

ALTER TABLE users ADD COLUMN proof_epoch BIGINT DEFAULT 0 NOT NULL;

ALTER TABLE challenges ADD COLUMN proof_epoch BIGINT DEFAULT 0 NOT NULL;

ALTER TABLE users ALTER COLUMN password_hash DROP NOT NULL;

ALTER TABLE registrations ALTER COLUMN password_hash DROP NOT NULL;

ALTER TABLE registrations ADD COLUMN usernames_refused TEXT[] DEFAULT '{}' NOT NULL;

UPDATE alembic_version SET version_num='0005' WHERE alembic_version.version_num = '0004';

-- Running upgrade 0005 -> 0006

ALTER TABLE sessions ADD COLUMN late_generation INTEGER DEFAULT 0 NOT NULL;

ALTER TABLE sessions ADD COLUMN late_repeats INTEGER DEFAULT 0 NOT NULL;

ALTER TABLE sessions ADD COLUMN refreshed_until TIMESTAMP WITH TIME ZONE;

UPDATE alembic_version SET version_num='0006' WHERE alembic_version.version_num = '0005';

-- Running upgrade 0006 -> 0007

CREATE TABLE email_change_stops (
    id UUID NOT NULL, 
    user_id UUID NOT NULL, 
    email TEXT NOT NULL, 
    token_digest BYTEA NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (id), 
    FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE, 
    UNIQUE (token_digest)
);

CREATE INDEX email_change_stops_by_user ON email_change_stops (user_id, created_at);

CREATE INDEX email_change_stops_by_expiry ON email_change_stops (expires_at);

UPDATE alembic_version SET version_num='0007' WHERE alembic_version.version_num = '0006';
