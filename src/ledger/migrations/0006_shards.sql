-- Up to which entry of each shard's stream everything is here, where the books are on Redis. Who
-- archives entries of a shard has its row locked meanwhile.
CREATE TABLE shards (
    shard BIGINT PRIMARY KEY NOT NULL,
    position BIGINT NOT NULL
);

-- An entry of a stream has several records, and positions of different shards are the same ones.
CREATE TABLE letters (
    -- The shard; -1 for the journal of embedded books.
    shard BIGINT NOT NULL,
    -- Where the record ends in the journal, or which entry of the shard it stands in.
    position BIGINT NOT NULL,
    -- Which record of the entry it is.
    part BIGINT NOT NULL,
    -- Its charge, or the adjustment's id, where it could be read; else empty.
    id BLOB NOT NULL,
    what TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (shard, position, part, id)
);
INSERT INTO letters (shard, position, part, id, what, record)
    SELECT -1, position, 0, id, what, record FROM dead_letters;
DROP TABLE dead_letters;
ALTER TABLE letters RENAME TO dead_letters;
CREATE INDEX dead_letters_by_id ON dead_letters (id);
