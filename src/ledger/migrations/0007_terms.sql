-- Up to which entry each term of a shard's ledger is here. A term begins whenever Redis comes back; it
-- may have lost entries then, and others have their positions.
CREATE TABLE shard_terms (
    shard BIGINT NOT NULL,
    term TEXT NOT NULL,
    through BIGINT NOT NULL,
    PRIMARY KEY (shard, term)
);
