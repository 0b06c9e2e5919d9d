-- Administration: entries of the audit in one order, tokens, and answers to repeated requests.

ALTER TABLE directory ADD COLUMN audit_seq BIGINT NOT NULL DEFAULT 0;

-- Who changed what: one row for each changed thing, numbered in the order of the changes. `org`
-- is empty for what belongs to none, and `version` is absent for what made no version of an org.
CREATE TABLE audit_entry (
    seq BIGINT NOT NULL PRIMARY KEY,
    org TEXT NOT NULL,
    version BIGINT,
    who TEXT NOT NULL,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    thing TEXT NOT NULL,
    line TEXT NOT NULL,
    before_change TEXT,
    after_change TEXT
);
INSERT INTO audit_entry (seq, org, version, who, at, kind, thing, line, before_change, after_change)
    SELECT ROW_NUMBER() OVER (ORDER BY at, org, version, line),
           org, version, who, at, '', '', what, before_change, after_change
    FROM audit;
UPDATE directory SET audit_seq = (SELECT COUNT(*) FROM audit);
DROP TABLE audit;
CREATE INDEX audit_entry_by_org ON audit_entry (org, seq);

-- Only the SHA-256 of a token is kept, in hexadecimal. Without an org it is for all of them.
CREATE TABLE admin_token (
    id TEXT NOT NULL PRIMARY KEY,
    hash TEXT NOT NULL,
    role TEXT NOT NULL,
    org TEXT,
    profiles TEXT NOT NULL,
    created_at TEXT NOT NULL,
    created_by TEXT NOT NULL,
    expires TEXT
);

-- Requests that carried an Idempotency-Key. Without an answer the request was begun and its end
-- is not known; an empty answer was too large to keep.
CREATE TABLE idempotency (
    token TEXT NOT NULL,
    once_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    operation TEXT NOT NULL,
    answer TEXT,
    at TEXT NOT NULL,
    PRIMARY KEY (token, once_key)
);
CREATE INDEX idempotency_by_age ON idempotency (at);
