-- The HTTP messages that answered requests made under a key, for who asks again; kept as long as
-- the keys.
CREATE TABLE answers (
    charge BLOB PRIMARY KEY,
    -- Microseconds since the Unix epoch.
    at BIGINT NOT NULL,
    message BLOB NOT NULL
);
CREATE INDEX answers_by_time ON answers (at);
