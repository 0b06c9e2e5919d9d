-- What it takes to build books in Redis again, of which this is the archive.

-- The books that were archived here, by their number. Where `sure` is 0 they had begun before the
-- archive wrote down what follows here, and of charges that have no number nobody knows whether they
-- are of these.
CREATE TABLE archived_books (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch TEXT NOT NULL UNIQUE,
    sure BIGINT NOT NULL
);
ALTER TABLE charges ADD COLUMN books BIGINT;
ALTER TABLE adjustments ADD COLUMN books BIGINT;

-- What came into a shard when books were moved: the records.
CREATE TABLE carried (
    books BIGINT NOT NULL,
    shard BIGINT NOT NULL,
    position BIGINT NOT NULL,
    part BIGINT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (books, shard, position, part)
);

-- The last archived call of each session, and when that was, in microseconds since the Unix epoch.
CREATE TABLE shard_sessions (
    shard BIGINT NOT NULL,
    session TEXT NOT NULL,
    number BIGINT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (shard, session)
);

-- Cycles before it are closed.
ALTER TABLE shards ADD COLUMN closed BIGINT NOT NULL DEFAULT 0;

-- Of a charge that is open, whose it is and what else its record does not say; of one that has ended
-- only where that has to be remembered.
ALTER TABLE charges ADD COLUMN more BLOB;

-- The key under which an adjustment was made once.
ALTER TABLE adjustments ADD COLUMN once BLOB;

-- The newest grant.
ALTER TABLE accounts ADD COLUMN base BIGINT;
ALTER TABLE accounts ADD COLUMN epoch BIGINT;
ALTER TABLE accounts ADD COLUMN number BIGINT;
