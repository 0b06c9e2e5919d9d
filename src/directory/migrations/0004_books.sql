-- Which books give out what this directory grants: others would give all of it out once more.
CREATE TABLE books (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    -- embedded or redis
    engine TEXT NOT NULL,
    -- The id of the data dir, or the epoch of the books in Redis
    name TEXT NOT NULL,
    -- How many shards there are; 1 where there are none
    shards BIGINT NOT NULL,
    -- 1 once they have been there: what is made no second time
    made BIGINT NOT NULL
);
