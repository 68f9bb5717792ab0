CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE stories (
    id UUID NOT NULL, 
    owner_id UUID NOT NULL, 
    request_id TEXT, 
    request_digest BYTEA NOT NULL, 
    state TEXT NOT NULL, 
    title TEXT NOT NULL, 
    text TEXT NOT NULL, 
    preferences TEXT[] NOT NULL, 
    theme TEXT NOT NULL, 
    prompt TEXT NOT NULL, 
    length TEXT NOT NULL, 
    language TEXT NOT NULL, 
    attempt INTEGER NOT NULL, 
    failures INTEGER NOT NULL, 
    writer TEXT NOT NULL, 
    model TEXT NOT NULL, 
    prompt_tokens INTEGER NOT NULL, 
    completion_tokens INTEGER NOT NULL, 
    failure_reason TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    started_at TIMESTAMP WITH TIME ZONE, 
    completed_at TIMESTAMP WITH TIME ZONE, 
    dispatched_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    leased_until TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (id), 
    CONSTRAINT stories_state_known CHECK (state IN ('QUEUED', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED'))
);

CREATE INDEX stories_by_owner ON stories (owner_id, id);

CREATE UNIQUE INDEX stories_by_request ON stories (owner_id, request_id);

CREATE INDEX stories_unfinished ON stories (state, id) WHERE state IN ('QUEUED', 'RUNNING');

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

CREATE TABLE dead_letters (
    event_id UUID NOT NULL, 
    type TEXT NOT NULL, 
    key TEXT NOT NULL, 
    event BYTEA NOT NULL, 
    reason TEXT NOT NULL, 
    failures INTEGER NOT NULL, 
    died_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (event_id)
);

INSERT INTO alembic_version (version_num) VALUES ('0001') RETURNING alembic_version.version_num;

-- Running upgrade 0001 -> 0002

CREATE TABLE erased_subjects (
    subject_id UUID NOT NULL, 
    erased_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (subject_id)
);

CREATE INDEX outbox_by_key ON outbox (key);

UPDATE alembic_version SET version_num='0002' WHERE alembic_version.version_num = '0001';

-- Running upgrade 0002 -> 0003

ALTER TABLE stories ADD COLUMN queued_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE stories ADD COLUMN deleted_at TIMESTAMP WITH TIME ZONE;

CREATE INDEX stories_by_state ON stories (owner_id, state, id);

CREATE INDEX stories_by_completion ON stories (completed_at) WHERE state = 'COMPLETED';

CREATE INDEX stories_to_delete ON stories (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE admissions (
    position BIGINT GENERATED ALWAYS AS IDENTITY, 
    owner_id UUID NOT NULL, 
    admitted_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (position)
);

CREATE INDEX admissions_by_owner ON admissions (owner_id, admitted_at);

CREATE INDEX admissions_by_time ON admissions (admitted_at);

UPDATE alembic_version SET version_num='0003' WHERE alembic_version.version_num = '0002';

-- Running upgrade 0003 -> 0004

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

ALTER TABLE dead_letters ADD COLUMN inbox TEXT;

ALTER TABLE dead_letters ADD COLUMN settled_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE dead_letters ADD COLUMN settlement TEXT;

ALTER TABLE dead_letters ADD COLUMN settled_by UUID;

ALTER TABLE dead_letters ADD COLUMN settled_because TEXT;

ALTER TABLE dead_letters ADD COLUMN returned_at TIMESTAMP WITH TIME ZONE;

CREATE INDEX dead_letters_unsettled ON dead_letters (died_at, event_id) WHERE settled_at IS NULL;

CREATE INDEX dead_letters_to_return ON dead_letters (settled_at) WHERE settlement = 'REPLAYED' AND returned_at IS NULL;

UPDATE dead_letters SET inbox = 'story-accounts' WHERE type = 'storymesh.events.v1.UserDeleted';

UPDATE alembic_version SET version_num='0004' WHERE alembic_version.version_num = '0003';

-- Running upgrade 0004 -> 0005

ALTER TABLE stories ADD COLUMN available_at TIMESTAMP WITH TIME ZONE;

UPDATE alembic_version SET version_num='0005' WHERE alembic_version.version_num = '0004';

-- Running upgrade 0005 -> 0006

CREATE TABLE dead_letter_decisions (
    position BIGINT GENERATED ALWAYS AS IDENTITY, 
    event_id UUID NOT NULL, 
    inbox TEXT NOT NULL, 
    decision TEXT NOT NULL, 
    actor UUID NOT NULL, 
    because TEXT NOT NULL, 
    decided_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (position), 
    FOREIGN KEY(event_id) REFERENCES dead_letters (event_id) ON DELETE CASCADE
);

CREATE INDEX dead_letter_decisions_by_event ON dead_letter_decisions (event_id, position);

INSERT INTO dead_letter_decisions (event_id, inbox, decision, actor, because, decided_at)
        SELECT event_id, coalesce(inbox, 'story'), settlement, settled_by, coalesce(settled_because, ''), settled_at
        FROM dead_letters WHERE settled_at IS NOT NULL AND settled_by IS NOT NULL ORDER BY settled_at;

UPDATE alembic_version SET version_num='0006' WHERE alembic_version.version_num = '0005';
