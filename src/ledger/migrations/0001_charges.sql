-- The archive: what the journal recorded, one row a charge. Amounts stay inside the records, which
-- are the same bytes as in the journal.
CREATE TABLE charges (
    id BLOB PRIMARY KEY NOT NULL,
    org TEXT NOT NULL,
    user_id TEXT,
    key_id TEXT NOT NULL,
    hold BLOB NOT NULL,
    resolution BLOB
);

-- Names of the accounts that legs refer to.
CREATE TABLE accounts (
    key BLOB PRIMARY KEY NOT NULL,
    name TEXT NOT NULL
);

-- Up to which position of the journal everything is here; one row.
CREATE TABLE progress (
    id INTEGER PRIMARY KEY NOT NULL,
    position BIGINT NOT NULL
);

INSERT INTO progress (id, position) VALUES (1, 0);
