-- The owner's own name for a hold, when it was placed, and the entry that changed it last.
-- Entries of before tell neither, so that '' and 0 are what they say of older holds.
ALTER TABLE holds ADD COLUMN reference TEXT NOT NULL DEFAULT '';
ALTER TABLE holds ADD COLUMN placed_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE holds ADD COLUMN changed_by INTEGER NOT NULL DEFAULT 0;

CREATE UNIQUE INDEX holds_by_reference ON holds (owner, reference) WHERE reference <> '';

-- Accounts that owe something; the others take no place in it.
CREATE INDEX accounts_owing ON accounts (number)
    WHERE owed <> x'80000000000000000000000000000000';
