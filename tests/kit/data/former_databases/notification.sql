CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE notifications (
    id UUID NOT NULL, 
    user_id UUID NOT NULL, 
    type TEXT NOT NULL, 
    title TEXT NOT NULL, 
    body TEXT NOT NULL, 
    story_id UUID, 
    created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    read_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (id)
);

CREATE INDEX notifications_by_user ON notifications (user_id, id);

CREATE TABLE mails (
    event_id UUID NOT NULL, 
    template TEXT NOT NULL, 
    state TEXT NOT NULL, 
    attempts INTEGER NOT NULL, 
    error TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (event_id), 
    CONSTRAINT mails_state_known CHECK (state IN ('WAITING', 'SENDING', 'SENT', 'REFUSED', 'EXPIRED', 'UNKNOWN'))
);

CREATE TABLE processed_events (
    event_id UUID NOT NULL, 
    processed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (event_id)
);

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

ALTER TABLE mails ADD COLUMN user_id UUID;

CREATE INDEX mails_by_user ON mails (user_id) WHERE user_id IS NOT NULL;

UPDATE mails SET error = substring(error FROM '^\((-?[0-9]+)') WHERE error ~ '^\(-?[0-9]+, ';

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

ALTER TABLE dead_letters ADD COLUMN inbox TEXT;

ALTER TABLE dead_letters ADD COLUMN settled_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE dead_letters ADD COLUMN settlement TEXT;

ALTER TABLE dead_letters ADD COLUMN settled_by UUID;

ALTER TABLE dead_letters ADD COLUMN settled_because TEXT;

ALTER TABLE dead_letters ADD COLUMN returned_at TIMESTAMP WITH TIME ZONE;

CREATE INDEX dead_letters_unsettled ON dead_letters (died_at, event_id) WHERE settled_at IS NULL;

CREATE INDEX dead_letters_to_return ON dead_letters (settled_at) WHERE settlement = 'REPLAYED' AND returned_at IS NULL;

UPDATE alembic_version SET version_num='0003' WHERE alembic_version.version_num = '0002';

-- Running upgrade 0003 -> 0004

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
        SELECT event_id, coalesce(inbox, 'notification'), settlement, settled_by, coalesce(settled_because, ''), settled_at
        FROM dead_letters WHERE settled_at IS NOT NULL AND settled_by IS NOT NULL ORDER BY settled_at;

UPDATE alembic_version SET version_num='0004' WHERE alembic_version.version_num = '0003';
