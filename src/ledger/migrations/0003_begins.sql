-- The position at which the journal began when the archive was built again without its beginning;
-- 0: everything there ever was is here. Charges held before it may be missing.
ALTER TABLE progress ADD COLUMN begins BIGINT NOT NULL DEFAULT 0;
