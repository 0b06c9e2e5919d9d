-- Where in the journal an adjustment's record ends, so that it is known which of them a journal
-- lost; 0 for what was archived before this column was there.
ALTER TABLE adjustments ADD COLUMN position BIGINT NOT NULL DEFAULT 0;

-- Records that could not be read, as they stand in the journal. The archive goes on behind them.
CREATE TABLE dead_letters (
    -- Where the record ends.
    position BIGINT NOT NULL,
    -- Its charge, or the adjustment's id, where it could be read; else empty.
    id BLOB NOT NULL,
    what TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (position, id)
);
CREATE INDEX dead_letters_by_id ON dead_letters (id);
