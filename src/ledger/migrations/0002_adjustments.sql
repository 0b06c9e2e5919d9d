-- What admins gave and took, and what refunds gave back: the same bytes as in the journal,
-- and in its order.
CREATE TABLE adjustments (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    org TEXT NOT NULL,
    charge BLOB,
    record BLOB NOT NULL
);
CREATE INDEX adjustments_by_org ON adjustments (org, place);
CREATE INDEX adjustments_by_charge ON adjustments (charge) WHERE charge IS NOT NULL;
