"""Who may call what: loopback without keys, keys with scopes, faces opened by name, both ways."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pennyweight.delivery import keys
from pennyweight.delivery.http.guard import Guard, is_loopback
from served import Answer, Served, transfer

NOW = 1_760_000_000_000_000


def code_of(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["code"]


# ── without keys ──────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def open_house() -> Iterator[Served]:
    with Served() as served:
        served.fund("1", "2")
        yield served


@pytest.mark.parametrize("path", ["/v1/transfers", "/v1/holds"], ids=["short way", "long way"])
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "host_refused"),
        ({"Host": "127.0.0.1.evil.example"}, "host_refused"),
        ({"Host": "localhost.evil.example:80"}, "host_refused"),
        ({"Host": "10.0.0.1"}, "host_refused"),
        ({"Host": ""}, "host_refused"),
        ({"Origin": "https://evil.example"}, "origin_refused"),
        ({"Origin": "null"}, "origin_refused"),
        ({"Origin": "http://localhost:1"}, "origin_refused"),
        ({"Sec-Fetch-Site": "cross-site"}, "origin_refused"),
        ({"Sec-Fetch-Site": "same-site"}, "origin_refused"),
    ],
    ids=str,
)
def test_foreign_page_refused(
    open_house: Served, path: str, headers: dict[str, str], code: str
) -> None:
    before = open_house.store.head()
    body = transfer("user:1:USD", "user:2:USD")
    assert code_of(open_house.send("POST", path, body, headers)) == (403, code)
    assert code_of(open_house.send("GET", "/v1/assets", None, headers)) == (403, code)
    assert open_house.store.head() == before


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "[::1]:8080", "127.0.0.2"])
def test_own_host_served(open_house: Served, host: str) -> None:
    assert open_house.send("GET", "/v1/assets", None, {"Host": host}).status == 200


def test_own_page_served(open_house: Served) -> None:
    host = f"127.0.0.1:{open_house.port}"
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    body = transfer("user:1:USD", "user:2:USD")
    assert open_house.send("POST", "/v1/transfers", body, headers).status == 201


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_for_everybody(open_house: Served, path: str) -> None:
    assert open_house.send("GET", path, None, {"Host": "10.0.0.1"}).status == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


# ── with keys ─────────────────────────────────────────────────────────────────────


class House:
    """A server whose book has keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.everything = keys.create(folder, ("*",), now=NOW)
        self.served = Served(folder=folder, open_faces=["payments"])

    def call(self, method: str, path: str, token: str, body: object = None) -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self.served.send(method, path, body, headers)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("book"))
    with house.served:
        for user in ("1", "2"):
            body = {"id": f"user:{user}:USD", "floor": "-100"}
            assert house.call("POST", "/v1/accounts", house.everything, body).status == 201
        yield house


PAY = transfer("user:1:USD", "user:2:USD", "0.01")


@pytest.mark.parametrize("path", ["/v1/transfers", "/v1/accounts/user:1:USD/close"])
def test_key_needed(house: House, path: str) -> None:
    wrong = house.everything[:-1] + ("a" if house.everything[-1] != "a" else "b")
    for token in ("", "nonsense", wrong, house.everything.split(".")[0], "." + wrong):
        answer = house.call("POST", path, token, PAY)
        assert code_of(answer) == (401, "key_required")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("scheme", ["Basic", "Token", ""])
def test_key_in_another_scheme(house: House, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {house.everything}".strip()}
    assert house.served.send("POST", "/v1/transfers", PAY, headers).status == 401


def test_scopes(house: House) -> None:
    reader = keys.create(house.folder, ("ledger:read",), now=NOW)
    writer = keys.create(house.folder, ("ledger:write", "wallet:read"), now=NOW)
    stranger = keys.create(house.folder, ("wallet:write",), now=NOW)
    reload(house)
    assert house.call("GET", "/v1/assets", reader).status == 200
    assert code_of(house.call("POST", "/v1/transfers", reader, PAY)) == (403, "scope_missing")
    assert code_of(house.call("POST", "/v1/holds", reader, {})) == (403, "scope_missing")
    assert code_of(house.call("POST", "/v1/verify", reader)) == (403, "scope_missing")
    assert house.call("POST", "/v1/transfers", writer, PAY).status == 201
    assert house.call("GET", "/v1/assets", writer).status == 200
    assert code_of(house.call("GET", "/v1/assets", stranger)) == (403, "scope_missing")
    assert code_of(house.call("POST", "/v1/transfers", stranger, PAY)) == (403, "scope_missing")
    assert house.call("GET", "/metrics", stranger).status == 200


def test_revoked(house: House) -> None:
    token = keys.create(house.folder, ("*",), now=NOW)
    reload(house)
    assert house.call("POST", "/v1/transfers", token, PAY).status == 201
    assert keys.revoke(house.folder, token.split(".")[0], now=NOW)
    reload(house)
    assert house.call("POST", "/v1/transfers", token, PAY).status == 401
    assert not keys.revoke(house.folder, token.split(".")[0], now=NOW)


def reload(house: House) -> None:
    """Let the guard look at its file again."""
    house.served.guard._reload_at = 0.0


def test_operations_need_any_key(house: House) -> None:
    for path in ("/metrics", "/openapi.json", "/docs"):
        assert house.call("GET", path, "").status == 401
        assert house.call("GET", path, house.everything).status == 200
    for path in ("/livez", "/readyz"):
        assert house.call("GET", path, "").status == 200


def test_open_face_needs_none(house: House) -> None:
    assert house.call("GET", "/accounts", "").status == 200
    assert house.call("GET", "/v1/accounts", "").status == 401


def test_host_does_not_matter_with_keys(house: House) -> None:
    headers = {"Host": "bank.example", "Authorization": f"bearer {house.everything}"}
    assert house.served.send("POST", "/v1/transfers", PAY, headers).status == 201


# ── the guard alone ───────────────────────────────────────────────────────────────


def test_file_changes_are_seen(tmp_path: Path) -> None:
    clock = [0.0]
    guard = Guard(tmp_path, "127.0.0.1", monotonic=lambda: clock[0])
    own = {"host": "127.0.0.1"}
    assert guard.check("ledger", is_write=True, headers=own) is None
    token = keys.create(tmp_path, ("*",), now=NOW)
    clock[0] += 5
    refused = guard.check("ledger", is_write=True, headers=own)
    assert refused is not None
    assert refused.status == 401
    headers = {**own, "authorization": f"Bearer {token}"}
    assert guard.check("ledger", is_write=True, headers=headers) is None


def test_all_revoked_stays_closed(tmp_path: Path) -> None:
    token = keys.create(tmp_path, ("*",), now=NOW)
    keys.revoke(tmp_path, token.split(".")[0], now=NOW)
    guard = Guard(tmp_path, "127.0.0.1")
    assert guard.has_keys
    refused = guard.check("ledger", is_write=False, headers={"host": "127.0.0.1"})
    assert refused is not None


def test_elsewhere_without_keys_stays_closed(tmp_path: Path) -> None:
    guard = Guard(tmp_path, "0.0.0.0", open_faces=["loans"])
    assert guard.check("ledger", is_write=False, headers={"host": "127.0.0.1"}) is not None
    assert guard.check("loans", is_write=True, headers={"host": "a.example"}) is None


def test_broken_file_keeps_what_was_known(tmp_path: Path) -> None:
    clock = [0.0]
    token = keys.create(tmp_path, ("ledger:write",), now=NOW)
    guard = Guard(tmp_path, "127.0.0.1", monotonic=lambda: clock[0])
    (tmp_path / keys.FILE_NAME).write_bytes(b"{")
    clock[0] += 5
    headers = {"host": "127.0.0.1", "authorization": f"Bearer {token}"}
    assert guard.check("ledger", is_write=True, headers=headers) is None
    assert guard.check("ledger", is_write=True, headers={"host": "127.0.0.1"}) is not None


def test_file_that_was_broken_from_the_start_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / keys.FILE_NAME).write_bytes(b"{")
    refused = Guard(tmp_path, "127.0.0.1").check(
        "ledger", is_write=False, headers={"host": "127.0.0.1"}
    )
    assert refused is not None
    assert refused.status == 503


def test_signature_stands_in_for_key(tmp_path: Path) -> None:
    keys.create(tmp_path, ("*",), now=NOW)
    guard = Guard(tmp_path, "127.0.0.1", signed_faces={"wallet": "x-signature"})
    assert guard.check("wallet", is_write=True, headers={"x-signature": "abc"}) is None
    assert guard.check("wallet", is_write=True, headers={}) is not None
    assert guard.check("ledger", is_write=True, headers={"x-signature": "abc"}) is not None


# ── the file ──────────────────────────────────────────────────────────────────────


def test_secret_is_kept_as_hash(tmp_path: Path) -> None:
    token = keys.create(tmp_path, ("ledger:read",), now=NOW, note="reports")
    file = tmp_path / keys.FILE_NAME
    assert token.split(".")[1] not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    (key,) = keys.load(tmp_path)
    assert (key.scopes, key.note, key.created_at) == (("ledger:read",), "reports", NOW)
    assert keys.find({key.id: key}, token) == key
    assert keys.find({key.id: key}, token + "x") is None
    assert keys.find({}, token) is None


@pytest.mark.parametrize("scopes", [(), ("",), ("ledger",), ("ledger:all",), ("a", "*"), ("* ",)])
def test_bad_scope(tmp_path: Path, scopes: tuple[str, ...]) -> None:
    with pytest.raises(keys.BadScope):
        keys.create(tmp_path, scopes, now=NOW)
    assert keys.load(tmp_path) == []


@pytest.mark.parametrize(
    ("scopes", "face", "is_write", "expected"),
    [
        (("*",), "wallet", True, True),
        (("wallet:write",), "wallet", True, True),
        (("wallet:write",), "wallet", False, True),
        (("wallet:read",), "wallet", False, True),
        (("wallet:read",), "wallet", True, False),
        (("wallet:write",), "ledger", False, False),
    ],
)
def test_scopes_allow(scopes: tuple[str, ...], face: str, is_write: bool, expected: bool) -> None:
    key = keys.ApiKey("a", "b", scopes, NOW)
    assert key.allows(face, is_write=is_write) is expected
    assert msgspec.json.decode(msgspec.json.encode(key), type=keys.ApiKey) == key
