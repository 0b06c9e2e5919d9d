-- What admins gave and took, and what refunds gave back: the same bytes as in the journal.
CREATE TABLE adjustments (
    id BLOB PRIMARY KEY NOT NULL,
    org TEXT NOT NULL,
    charge BLOB,
    record BLOB NOT NULL
);
CREATE INDEX adjustments_by_org ON adjustments (org, id);
CREATE INDEX adjustments_by_charge ON adjustments (charge) WHERE charge IS NOT NULL;
