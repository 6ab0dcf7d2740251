-- One book. Amounts are 16 bytes, big endian, offset by 2^127, so that bytes compare as
-- numbers do: x'80000000000000000000000000000000' is zero, and the two limits below are
-- -10^38 and 10^38.

CREATE TABLE head (
    one          INTEGER PRIMARY KEY CHECK (one = 1),
    book         TEXT    NOT NULL,
    incarnation  TEXT    NOT NULL,
    epoch        INTEGER NOT NULL,
    sequence     INTEGER NOT NULL,
    chain        BLOB    NOT NULL CHECK (length(chain) = 32),
    committed_at INTEGER NOT NULL,
    counters     TEXT    NOT NULL
) STRICT;

CREATE TABLE batches (
    first_sequence INTEGER PRIMARY KEY,
    committed_at   INTEGER NOT NULL,
    header         BLOB    NOT NULL,
    chain          BLOB    NOT NULL CHECK (length(chain) = 32)
) STRICT;

CREATE INDEX batches_by_time ON batches (committed_at);

CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    product  TEXT NOT NULL,
    body     BLOB NOT NULL
) STRICT;

CREATE INDEX entries_by_product ON entries (product, sequence);

-- Where keys are found; made from the entries, see the module `keys`. One tree holds all
-- partitions, one after the other. Entries up to `indexed_to` are in it.
CREATE TABLE key_index (
    partition INTEGER NOT NULL,
    hash      INTEGER NOT NULL,
    sequence  INTEGER NOT NULL,
    PRIMARY KEY (partition, hash, sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE key_state (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    indexed_to INTEGER NOT NULL,
    partition  INTEGER NOT NULL,
    keys       INTEGER NOT NULL
) STRICT;

INSERT INTO key_state VALUES (1, 0, 0, 0);

CREATE TABLE key_filters (
    partition  INTEGER PRIMARY KEY,
    indexed_to INTEGER NOT NULL,
    checksum   INTEGER NOT NULL,
    words      BLOB    NOT NULL
) STRICT;

-- `least` is floor + held, what `posted` may not fall below; null where the floor is null,
-- or zero, because it equals `held` then.
CREATE TABLE accounts (
    number     INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    holder     TEXT    NOT NULL,
    asset      TEXT    NOT NULL,
    floor      BLOB,
    least      BLOB,
    posted     BLOB    NOT NULL,
    held       BLOB    NOT NULL,
    owed       BLOB    NOT NULL,
    open_holds INTEGER NOT NULL CHECK (open_holds >= 0),
    version    INTEGER NOT NULL CHECK (version > 0),
    lines      INTEGER NOT NULL CHECK (lines >= 0),
    roots      BLOB    NOT NULL,
    is_closed  INTEGER NOT NULL CHECK (is_closed IN (0, 1)),
    CONSTRAINT posted_has_38_digits CHECK (
        length(posted) = 16
        AND posted > x'34c4b357a5793b85f675ddc000000000'
        AND posted < x'cb3b4ca85a86c47a098a224000000000'
    ),
    CONSTRAINT held_has_38_digits CHECK (
        length(held) = 16
        AND held >= x'80000000000000000000000000000000'
        AND held < x'cb3b4ca85a86c47a098a224000000000'
    ),
    CONSTRAINT owed_is_not_negative CHECK (
        length(owed) = 16 AND owed >= x'80000000000000000000000000000000'
    ),
    CONSTRAINT floor_holds CHECK (
        CASE
            WHEN floor IS NULL THEN least IS NULL
            WHEN floor = x'80000000000000000000000000000000' THEN posted >= held
            ELSE least IS NOT NULL AND length(floor) = 16 AND length(least) = 16
                AND least >= floor AND posted >= least
        END
    )
) STRICT;

CREATE INDEX accounts_by_holder ON accounts (holder);

CREATE TABLE holds (
    id         INTEGER PRIMARY KEY,
    account    TEXT    NOT NULL,
    asset      TEXT    NOT NULL,
    amount     BLOB    NOT NULL,
    remaining  BLOB    NOT NULL,
    owner      TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('open', 'settled', 'voided', 'expired')),
    expires_at INTEGER,
    CONSTRAINT hold_is_positive CHECK (
        length(amount) = 16 AND amount > x'80000000000000000000000000000000'
    ),
    CONSTRAINT remaining_is_part_of_amount CHECK (
        length(remaining) = 16 AND remaining <= amount
        AND CASE state
            WHEN 'open' THEN remaining > x'80000000000000000000000000000000'
            ELSE remaining = x'80000000000000000000000000000000'
        END
    )
) STRICT;

CREATE INDEX holds_open ON holds (account, id) WHERE state = 'open';

CREATE INDEX holds_due ON holds (expires_at, CAST(id AS TEXT))
    WHERE state = 'open' AND expires_at IS NOT NULL;

-- `record` is the whole record as JSON; the other columns are for guards and look-ups.
CREATE TABLE records (
    kind    TEXT    NOT NULL,
    id      TEXT    NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    holder  TEXT    NOT NULL,
    record  BLOB    NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;

CREATE INDEX records_by_holder ON records (holder) WHERE holder <> '';

CREATE TABLE labels (
    kind  TEXT NOT NULL,
    label TEXT NOT NULL,
    id    TEXT NOT NULL,
    PRIMARY KEY (kind, label, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE names (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    id   TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE marks (
    place TEXT    NOT NULL,
    rank  INTEGER NOT NULL,
    id    TEXT    NOT NULL,
    kind  TEXT    NOT NULL,
    PRIMARY KEY (place, rank, id, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE back_dated (
    account      TEXT    NOT NULL,
    effective_at INTEGER NOT NULL,
    sequence     INTEGER NOT NULL,
    committed_at INTEGER NOT NULL,
    change       BLOB    NOT NULL CHECK (length(change) = 16)
) STRICT;

CREATE INDEX back_dated_by_account ON back_dated (account, effective_at);

CREATE TABLE cursors (
    name     TEXT PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Outside the journal.

CREATE TABLE lease (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    epoch      INTEGER NOT NULL,
    owner      TEXT    NOT NULL,
    address    TEXT    NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE TABLE stage (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
