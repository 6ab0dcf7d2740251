"""A made-up population in the shape of the risk engine's data set, the same for the same seed.

The set has a header `User_Id,USD,EUR,BTC,BCH,ETH`, ids from 100 in order, uniform amounts
without trailing zeros, and zeros in whole blocks of ten users.
"""

import random
from collections.abc import Iterator

import msgspec

FIRST_ID = 100
BLOCK = 10
LINE_ENDS = {"cr": "\r", "lf": "\n", "crlf": "\r\n"}


class Column(msgspec.Struct, frozen=True):
    """A token's amounts: below `below` (natural unit), with `scale` decimals.

    `zero_blocks` of every 90 blocks of ten users have nothing of it.
    """

    token: str
    below: int
    scale: int
    zero_blocks: int


COLUMNS = (
    Column("USD", 100_000, 2, 3),
    Column("EUR", 10_000, 2, 2),
    Column("BTC", 100, 6, 2),
    Column("BCH", 200, 6, 2),
    Column("ETH", 1_000, 6, 3),
)


def amount_text(units: int, scale: int) -> str:
    """Write units of 10^-scale plainly: no trailing zeros, no point without decimals."""
    whole, part = divmod(units, 10**scale)
    decimals = f"{part:0{scale}d}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)


def rows(count: int, seed: int) -> Iterator[list[str]]:
    """Yield the header, then `count` users. Equal arguments give equal rows."""
    draw = random.Random(f"population {seed}")
    blocks = -(-count // BLOCK)
    empty = [
        frozenset(draw.sample(range(blocks), round(blocks * column.zero_blocks / 90)))
        for column in COLUMNS
    ]
    yield ["User_Id", *(column.token for column in COLUMNS)]
    for index in range(count):
        row = [str(FIRST_ID + index)]
        for column, zeros in zip(COLUMNS, empty, strict=True):
            units = draw.randrange(column.below * 10**column.scale)
            row.append("0" if index // BLOCK in zeros else amount_text(units, column.scale))
        yield row


def population_csv(count: int, seed: int, line_end: str = "\r") -> str:
    """Return the population as CSV text; as in the original, no line end after the last row."""
    return line_end.join(",".join(row) for row in rows(count, seed))
