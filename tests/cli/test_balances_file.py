"""Files of users and balances: what is taken, and how a wrong cell is named."""

import pytest

from pennyweight.delivery.balances import BadFile, parse_balances
from pennyweight.ledger.assets import BUILT_IN

ASSETS = {asset.name: asset for asset in BUILT_IN}
ROWS = [("100", (("USD", "0"), ("BTC", "1.5"))), ("101", (("USD", "20.25"), ("BTC", "0")))]


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_any_line_ends_are_read(end: bytes, has_end: bool, mark: bytes) -> None:
    lines = [b"User_Id,USD,BTC", b"100,0,1.50", b"101, 20.25 ,0.00"]
    balances = parse_balances(mark + end.join(lines) + end * has_end, ASSETS)
    assert [(row.user, row.balances) for row in balances.rows] == ROWS
    assert [row.number for row in balances.rows] == [1, 2]
    assert balances.totals == {"USD": 20_250_000_000_000_000_000, "BTC": 1_500_000_000_000_000_000}


def test_any_columns_of_known_assets_are_read() -> None:
    balances = parse_balances(b'user_id,BESKAR\n"a:b","0.000000000000000000000001"\n\n', ASSETS)
    assert balances.rows[0].user == "a:b"
    assert balances.totals == {"BESKAR": 1}


def test_a_file_without_rows_is_an_empty_one() -> None:
    assert parse_balances(b"User_Id,USD", ASSETS).rows == []


@pytest.mark.parametrize(
    "content",
    [
        b"User_Id,USD,BTC\r1,1,0\r2,3,0.5\r",
        b"USER_ID,USD,BTC\r\n1,1.00,0.00\r\n2, 3e0 ,0.50",
        b"User_Id,BTC,USD\n1,0,1\n2,0.5,3\n",
        b"\xef\xbb\xbfUser_Id,USD,BTC\n\n2,3,0.5\n1,1,0",
    ],
)
def test_the_digest_is_of_what_the_file_says(content: bytes) -> None:
    first = parse_balances(b"User_Id,USD,BTC\n1,1,0\n2,3,0.5\n", ASSETS)
    second = parse_balances(content, ASSETS)
    assert first.digest == second.digest
    assert first.bytes_digest != second.bytes_digest


def test_another_amount_column_or_user_is_another_digest() -> None:
    contents = [b"User_Id,USD\n1,1", b"User_Id,USD\n1,2", b"User_Id,EUR\n1,1", b"User_Id,USD\n2,1",
                b"User_Id,USD,EUR\n1,1,0", b"User_Id,USD\n1,1\n2,0"]  # fmt: skip
    assert len({parse_balances(content, ASSETS).digest for content in contents}) == len(contents)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "line 1: the first column must be User_Id (and 1 more)"),
        (b"Name,USD\n1,1", "line 1, column Name: the first column must be User_Id"),
        (b"User_Id\n1", "line 1: there must be 1 to 64 columns of assets"),
        (b"User_Id,XYZ\n1,1", "line 1, column XYZ: 'XYZ' is not a registered asset"),
        (b"User_Id,usd\n1,1", "line 1, column usd: 'usd' is not a registered asset"),
        (b"User_Id,USD,USD\n1,1,1", "line 1, column USD: the column is there twice"),
        (b"User_Id,USD\r1,1\r2", "line 3: there are 1 columns, not 2"),
        (b"User_Id,USD\n1,1,1", "line 2: there are 3 columns, not 2"),
        (b"User_Id,USD\n1,", "line 2, column USD: it is empty"),
        (b"User_Id,USD\n1,abc", "line 2, column USD: 'abc' is not a plain decimal number"),
        (b"User_Id,USD\n1,NaN", "line 2, column USD: 'NaN' is not a plain decimal number"),
        (b"User_Id,USD\n1,1 000", "line 2, column USD: '1 000' is not a plain decimal number"),
        (b"User_Id,USD\n1,-1", "line 2, column USD: an amount may not be negative here"),
        (b"User_Id,USD\n1,0.0000000000000000001", "line 2, column USD: at most 18 decimals"),
        (b"User_Id,USD\n1,1e30", "line 2, column USD: an amount has at most 38 digits"),
        (b"User_Id,USD\n,1", "line 2, column User_Id: a user id has 1 to 255 characters"),
        (b"User_Id,USD\na\x07,1", "line 2, column User_Id: a user id holds no control"),
        (b"User_Id,USD\n1,1\n1,2", "line 3, column User_Id: user '1' is on line 2 already"),
        (b"User_Id,USD\n1,1\n\xff,2", "line 3: it is not UTF-8"),
        (b'User_Id,USD\n1,"1', "line 2: it is not CSV"),
    ],
)
def test_a_wrong_file_is_refused_with_line_column_and_reason(content: bytes, problem: str) -> None:
    with pytest.raises(BadFile) as refused:
        parse_balances(content, ASSETS)
    assert str(refused.value).startswith(problem)


def test_all_problems_are_counted_and_the_first_are_kept() -> None:
    with pytest.raises(BadFile, match=r"line 2, .* \(and 49 more\)") as refused:
        parse_balances(b"User_Id,USD\n" + b"".join(b"%d,x\n" % n for n in range(50)), ASSETS)
    assert refused.value.count == 50
    assert len(refused.value.problems) == 20
