-- Instants are RFC 3339 texts, amounts are millionths, lists are JSON arrays. Names avoid the
-- words that PostgreSQL reserves, and nothing here is particular to SQLite.

CREATE TABLE directory (
    epoch BIGINT NOT NULL
);
INSERT INTO directory (epoch) VALUES (1);

CREATE TABLE org (
    id TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    contract TEXT,
    products TEXT NOT NULL,
    offers TEXT NOT NULL,
    bases TEXT NOT NULL,
    overage TEXT NOT NULL,
    split TEXT NOT NULL,
    mode TEXT NOT NULL,
    on_reassign TEXT NOT NULL,
    pool_limit BIGINT
);

-- Anchor and zone over time; the first era of an org has no start.
CREATE TABLE era (
    org TEXT NOT NULL,
    place BIGINT NOT NULL,
    starts_at TEXT,
    anchor TEXT NOT NULL,
    zone TEXT NOT NULL,
    PRIMARY KEY (org, place)
);

CREATE TABLE term (
    org TEXT NOT NULL,
    id TEXT NOT NULL,
    made_by TEXT NOT NULL,
    start_on TEXT NOT NULL,
    end_on TEXT NOT NULL,
    pool BIGINT NOT NULL,
    price_per_operation TEXT,
    currency TEXT,
    PRIMARY KEY (org, id)
);

CREATE TABLE plan (
    org TEXT NOT NULL,
    id TEXT NOT NULL,
    made_by TEXT NOT NULL,
    credits BIGINT NOT NULL,
    PRIMARY KEY (org, id)
);

CREATE TABLE org_group (
    org TEXT NOT NULL,
    id TEXT NOT NULL,
    made_by TEXT NOT NULL,
    PRIMARY KEY (org, id)
);

CREATE TABLE org_user (
    org TEXT NOT NULL,
    id TEXT NOT NULL,
    made_by TEXT NOT NULL,
    email TEXT,
    suspended BIGINT NOT NULL,
    pool_limit BIGINT,
    PRIMARY KEY (org, id)
);

-- A licence that nobody holds stays, so that it can be assigned again. `moved` says who held it
-- in the cycle in which it last changed hands, and whose bucket each of them pays from.
CREATE TABLE licence (
    org TEXT NOT NULL,
    id TEXT NOT NULL,
    made_by TEXT NOT NULL,
    plan TEXT NOT NULL,
    holder TEXT,
    priority BIGINT NOT NULL,
    expires TEXT,
    moved TEXT,
    PRIMARY KEY (org, id)
);
CREATE INDEX licence_by_holder ON licence (org, holder);

CREATE TABLE group_member (
    org TEXT NOT NULL,
    user_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    PRIMARY KEY (org, user_id, group_id)
);

CREATE TABLE profile (
    org TEXT NOT NULL,
    id TEXT NOT NULL,
    made_by TEXT NOT NULL,
    product TEXT NOT NULL,
    shared_credits BIGINT NOT NULL,
    pool_limit BIGINT,
    overage TEXT,
    PRIMARY KEY (org, id)
);

CREATE TABLE profile_group (
    org TEXT NOT NULL,
    profile_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    PRIMARY KEY (org, profile_id, group_id)
);

CREATE TABLE profile_user (
    org TEXT NOT NULL,
    user_id TEXT NOT NULL,
    profile_id TEXT NOT NULL,
    PRIMARY KEY (org, user_id, profile_id)
);
CREATE INDEX profile_user_by_profile ON profile_user (org, profile_id);

CREATE TABLE rate_card (
    org TEXT NOT NULL,
    id TEXT NOT NULL,
    made_by TEXT NOT NULL,
    card TEXT NOT NULL,
    PRIMARY KEY (org, id)
);

CREATE TABLE org_key (
    org TEXT NOT NULL,
    id TEXT NOT NULL,
    made_by TEXT NOT NULL,
    kind TEXT NOT NULL,
    pool_limit BIGINT,
    PRIMARY KEY (org, id)
);

-- Only the SHA-256 of a secret is kept, in hexadecimal. During rotation a key has two.
CREATE TABLE key_secret (
    hash TEXT NOT NULL PRIMARY KEY,
    org TEXT NOT NULL,
    key_id TEXT NOT NULL,
    expires TEXT
);
CREATE INDEX key_secret_by_key ON key_secret (org, key_id);

-- Who changed what: one row for each changed thing of each version of an org.
CREATE TABLE audit (
    org TEXT NOT NULL,
    version BIGINT NOT NULL,
    line BIGINT NOT NULL,
    who TEXT NOT NULL,
    at TEXT NOT NULL,
    what TEXT NOT NULL,
    before_change TEXT,
    after_change TEXT,
    PRIMARY KEY (org, version, line)
);
