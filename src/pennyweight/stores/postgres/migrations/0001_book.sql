-- Books. Every table begins with the book, so that a database may hold many of them, and so
-- may each of many databases. Text compares by bytes, which for UTF-8 is the order of the
-- characters' numbers. Amounts are whole numbers of the smallest unit, up to 38 digits.

-- Where each book stands, and who owns it. `fence` is raised to defeat an append of which
-- nobody knows whether it happened. The lease is outside the journal: `owner` is null while
-- there never was one, `expires_at` is by this server's clock in microseconds.
-- The row changes with every batch: with little on a page its old versions go soon.
CREATE TABLE pennyweight.heads (
    book         text   COLLATE "C" NOT NULL,
    incarnation  text   COLLATE "C" NOT NULL,
    epoch        bigint NOT NULL,
    sequence     bigint NOT NULL,
    chain        bytea  NOT NULL,
    committed_at bigint NOT NULL,
    counters     text   COLLATE "C" NOT NULL,
    fence        bigint NOT NULL DEFAULT 0,
    owner        text   COLLATE "C",
    address      text   COLLATE "C" NOT NULL DEFAULT '',
    lease_epoch  bigint NOT NULL DEFAULT 0,
    expires_at   bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (book)
) WITH (fillfactor = 10);

CREATE TABLE pennyweight.batches (
    book           text   COLLATE "C" NOT NULL,
    first_sequence bigint NOT NULL,
    committed_at   bigint NOT NULL,
    header         bytea  NOT NULL,
    chain          bytea  NOT NULL,
    PRIMARY KEY (book, first_sequence)
);

CREATE INDEX batches_by_time ON pennyweight.batches (book, committed_at);

CREATE TABLE pennyweight.entries (
    book     text   COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    product  text   COLLATE "C" NOT NULL,
    body     bytea  NOT NULL,
    PRIMARY KEY (book, sequence)
);

CREATE INDEX entries_by_product ON pennyweight.entries (book, product, sequence);

CREATE TABLE pennyweight.keys (
    book     text   COLLATE "C" NOT NULL,
    product  text   COLLATE "C" NOT NULL,
    key      text   COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (book, product, key)
);

-- `roots` is a list of integers with commas. Rows change in place while their page has room. Every
-- constraint is read anew by every statement that changes rows, so that all is in one.
CREATE TABLE pennyweight.accounts (
    book       text    COLLATE "C" NOT NULL,
    number     bigint  NOT NULL,
    id         text    COLLATE "C" NOT NULL,
    holder     text    COLLATE "C" NOT NULL,
    asset      text    COLLATE "C" NOT NULL,
    floor      numeric(38, 0),
    posted     numeric(38, 0) NOT NULL,
    held       numeric(38, 0) NOT NULL,
    owed       numeric(38, 0) NOT NULL,
    open_holds bigint  NOT NULL,
    version    bigint  NOT NULL,
    lines      bigint  NOT NULL,
    is_closed  boolean NOT NULL,
    roots      text    COLLATE "C" NOT NULL,
    PRIMARY KEY (book, number),
    CONSTRAINT account_is_sound CHECK (
        open_holds >= 0 AND version > 0 AND lines >= 0 AND held >= 0 AND owed >= 0
        AND CASE
            WHEN floor IS NULL THEN true
            WHEN floor = 0 THEN posted >= held
            ELSE posted - held >= floor
        END
    )
) WITH (fillfactor = 60);

CREATE UNIQUE INDEX accounts_by_id ON pennyweight.accounts (book, id);
CREATE INDEX accounts_by_holder ON pennyweight.accounts (book, holder);

-- Accounts that owe something; the others take no place in it.
CREATE INDEX accounts_owing ON pennyweight.accounts (book, number) WHERE owed <> 0;

CREATE TABLE pennyweight.holds (
    book       text   COLLATE "C" NOT NULL,
    id         bigint NOT NULL,
    account    text   COLLATE "C" NOT NULL,
    asset      text   COLLATE "C" NOT NULL,
    amount     numeric(38, 0) NOT NULL,
    remaining  numeric(38, 0) NOT NULL,
    owner      text   COLLATE "C" NOT NULL,
    state      text   COLLATE "C" NOT NULL,
    expires_at bigint,
    reference  text   COLLATE "C" NOT NULL,
    placed_at  bigint NOT NULL,
    changed_by bigint NOT NULL,
    PRIMARY KEY (book, id),
    CONSTRAINT state_is_known CHECK (state IN ('open', 'settled', 'voided', 'expired')),
    CONSTRAINT hold_is_positive CHECK (amount > 0),
    CONSTRAINT remaining_is_part_of_amount CHECK (
        remaining <= amount
        AND CASE state WHEN 'open' THEN remaining > 0 ELSE remaining = 0 END
    )
);

CREATE INDEX holds_open ON pennyweight.holds (book, account, id) WHERE state = 'open';

CREATE INDEX holds_due ON pennyweight.holds (book, expires_at, (id::text) COLLATE "C")
    WHERE state = 'open' AND expires_at IS NOT NULL;

CREATE UNIQUE INDEX holds_by_reference ON pennyweight.holds (book, owner, reference)
    WHERE reference <> '';

-- `record` is the whole record as JSON; the other columns are for guards and look-ups.
CREATE TABLE pennyweight.records (
    book    text   COLLATE "C" NOT NULL,
    kind    text   COLLATE "C" NOT NULL,
    id      text   COLLATE "C" NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    holder  text   COLLATE "C" NOT NULL,
    record  bytea  NOT NULL,
    PRIMARY KEY (book, kind, id)
) WITH (fillfactor = 80);

CREATE INDEX records_by_holder ON pennyweight.records (book, holder) WHERE holder <> '';

CREATE TABLE pennyweight.labels (
    book  text COLLATE "C" NOT NULL,
    kind  text COLLATE "C" NOT NULL,
    label text COLLATE "C" NOT NULL,
    id    text COLLATE "C" NOT NULL,
    PRIMARY KEY (book, kind, label, id)
);

CREATE TABLE pennyweight.names (
    book text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    id   text COLLATE "C" NOT NULL,
    PRIMARY KEY (book, kind, name)
);

CREATE TABLE pennyweight.marks (
    book  text   COLLATE "C" NOT NULL,
    place text   COLLATE "C" NOT NULL,
    rank  bigint NOT NULL,
    id    text   COLLATE "C" NOT NULL,
    kind  text   COLLATE "C" NOT NULL,
    PRIMARY KEY (book, place, rank, id, kind)
);

-- `position` counts the lines of one batch, as equal ones may stand in one entry.
CREATE TABLE pennyweight.back_dated (
    book         text   COLLATE "C" NOT NULL,
    account      text   COLLATE "C" NOT NULL,
    effective_at bigint NOT NULL,
    sequence     bigint NOT NULL,
    position     bigint NOT NULL,
    committed_at bigint NOT NULL,
    change       numeric(38, 0) NOT NULL,
    PRIMARY KEY (book, account, effective_at, sequence, position)
);

CREATE TABLE pennyweight.cursors (
    book     text   COLLATE "C" NOT NULL,
    name     text   COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (book, name)
);

-- Outside the journal.

CREATE TABLE pennyweight.stage (
    book  text COLLATE "C" NOT NULL,
    name  text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    PRIMARY KEY (book, name)
);
