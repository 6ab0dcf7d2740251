"""`pennyweight limits` and `pennyweight modes`: what the risk desk lets through."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

from cyclopts import App, Parameter

from pennyweight.config import Config
from pennyweight.delivery.cli.remote import Address, Key, ask, check_place
from pennyweight.delivery.cli.shared import (
    BookName,
    ConfigFile,
    Data,
    Json,
    StoreUrl,
    UserError,
    Where,
    find,
    open_book,
    print_json,
    roof,
    where,
)
from pennyweight.engine.port import Store, StoreInUse
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.commands import Command
from pennyweight.ledger.money import canonical
from pennyweight.ledger.refusals import Refused
from pennyweight.products.withdrawals.controls import (
    CONTROLS,
    USER,
    Controls,
    Limits,
    SetLimits,
    SetMode,
    UserControls,
    prevailing_limits,
)

limits = App(
    name="limits",
    help="Show and set what withdrawals may be at most.",
    result_action="return_value",
)
modes = App(
    name="modes", help="Show and set which withdrawals are taken.", result_action="return_value"
)

NONE = "none"

User = Annotated[str | None, Parameter(help="Of this user alone; else of all.", negative=())]
Amount = Annotated[
    str | None,
    Parameter(help="Decimal; none lifts the limit, as does leaving it out.", negative=()),
]


@limits.command(name="show")
def show_limits(
    *,
    user: User = None,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    address: Address = None,
    key: Key = "",
    json: Json = False,
) -> int:
    """Show the limits for all users, or what counts for one: their own limits, else those for all.

    Example: pennyweight limits show --data book
    """
    check_place(data, store, address)
    if address is not None:
        shown = ask(address, "GET", "/limits" + ("" if user is None else _query(user)), key)
    else:
        shown = _limits_in(where(data, store, book), user)
    if json:
        print_json(shown)
        return 0
    own = {limit["token"]: limit for limit in shown["limits"]}
    counting = shown.get("effective", shown["limits"])
    for limit in counting:
        print(_line(limit, own.get(limit["token"], {})))
    if not counting:
        print("there are no limits")
    return 0


@limits.command(name="set")
def set_limits(
    token: Annotated[str, Parameter(help="The token, as in BTC.")],
    /,
    *,
    per_withdrawal: Amount = None,
    per_day: Amount = None,
    user: User = None,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    address: Address = None,
    key: Key = "",
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Set both limits of a token: of one withdrawal, and of 24 hours; one left out is lifted.

    A user's own limit goes before the one for all, which counts where there is none. A running server is told with --address.

    Example: pennyweight limits set BTC --per-withdrawal 10 --per-day 25 --data book
    """
    if per_withdrawal is None and per_day is None:
        raise UserError("give --per-withdrawal, --per-day or both; none lifts a limit", code=2)
    most, most_a_day = _amount(per_withdrawal), _amount(per_day)
    check_place(data, store, address)
    if address is not None:
        body = {"token": token, "user_id": user, "per_withdrawal": most, "per_day": most_a_day}
        answer = ask(address, "PUT", "/limits", key, body)
    else:
        answer = _execute(
            SetLimits(token, most, most_a_day, user), *find(data, store, book, config)
        )
    _tell(answer, _line(answer, answer), json=json)
    return 0


@modes.command(name="show")
def show_modes(
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    address: Address = None,
    key: Key = "",
    json: Json = False,
) -> int:
    """Show the mode of everything, and of the tokens that have one of their own.

    Example: pennyweight modes show --data book
    """
    check_place(data, store, address)
    if address is not None:
        shown = ask(address, "GET", "/token-modes", key)
    else:
        controls = _controls_in(where(data, store, book))
        shown = {"mode": controls.mode, "tokens": dict(sorted(controls.modes.items()))}
    if json:
        print_json(shown)
    else:
        for what, mode in {"everything": shown["mode"], **shown["tokens"]}.items():
            print(f"{what}: {mode}")
    return 0


@modes.command(name="set")
def set_mode(
    mode: Annotated[
        Literal["active", "reducing", "halted"],
        Parameter(
            help="active: all is taken; reducing: nothing new; halted: no cancelling either."
        ),
    ],
    /,
    *,
    token: Annotated[
        str | None, Parameter(help="Of this token; else of everything.", negative=())
    ] = None,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    address: Address = None,
    key: Key = "",
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Set which withdrawals are taken. Settlements are facts, and booked in every mode.

    The stricter of a token's mode and that of everything counts.

    Example: pennyweight modes set reducing --token BTC --data book
    """
    check_place(data, store, address)
    if address is not None:
        answer = ask(address, "PUT", "/token-modes", key, {"token": token, "mode": mode})
    else:
        answer = _execute(SetMode(mode, token), *find(data, store, book, config))
    _tell(answer, f"{answer['token'] or 'everything'}: {answer['mode']}", json=json)
    return 0


# ── a book that no server has open ────────────────────────────────────────────────


def _execute(command: Command, found: Where, config: Config) -> dict[str, Any]:
    """Open the book for one command; none is begun for it. Raises UserError, NoBook."""
    import msgspec  # noqa: PLC0415 - only to show the answer

    open_book(found).close()
    try:
        with roof().open_inline(found.place, config) as book:
            outcome = book.execute(command)
    except StoreInUse as error:
        raise UserError(f"{error}; give --address", code=2) from None
    if isinstance(outcome, Receipt):
        answer: dict[str, Any] = msgspec.to_builtins(outcome.answer)
        return answer
    raise UserError(outcome.message if isinstance(outcome, Refusal) else str(outcome))


def _controls_in(found: Where) -> Controls:
    """Return the general modes and limits of a book."""
    store = open_book(found)
    try:
        return _general(store)
    finally:
        store.close()


def _general(store: Store) -> Controls:
    record = store.record(CONTROLS, "all")
    return Controls() if record is None else record.read(Controls)


def _limits_in(found: Where, user: str | None) -> dict[str, Any]:
    """Return the limits of all, or of one user, of a book, as GET /limits does. Raises UserError."""
    store = open_book(found)
    try:
        of_all = _general(store).limits
        if user is None:
            return {"user_id": None, "limits": _listed(of_all)}
        if not store.accounts(0, 1, holder=user_holder(user)):
            raise UserError(f"user_not_found: there is no user {user[:80]!r}")
        record = store.record(USER, user)
        own = {} if record is None else record.read(UserControls).limits
    except Refused as refused:
        raise UserError(f"{refused.reason.code}: {refused.message}") from None
    finally:
        store.close()
    effective = prevailing_limits(own, of_all)
    return {"user_id": user, "limits": _listed(own), "effective": _listed(effective)}


def _listed(found: dict[str, Limits]) -> list[dict[str, Any]]:
    return [
        {"token": token, "per_withdrawal": one.per_withdrawal, "per_day": one.per_day}
        for token, one in sorted(found.items())
    ]


# ── words ─────────────────────────────────────────────────────────────────────────


def _amount(text: str | None) -> str | None:
    """Return a limit as it is kept, None for none. Raises UserError."""
    if text is None or text.lower() == NONE:
        return None
    try:
        return canonical(text)
    except Refused as refused:
        raise UserError(refused.message, code=2) from None


def _line(limit: dict[str, Any], own: dict[str, Any]) -> str:
    """Say what limits a token has, and which of them, or of a user's, are those for all."""
    parts = []
    for name, words in (("per_withdrawal", "a withdrawal"), ("per_day", "in 24 hours")):
        if limit[name] is None and limit.get("user_id") is not None:
            parts.append(f"{words} as for all")
        elif limit[name] is None:
            parts.append(f"no limit {words}")
        elif own.get(name) is None:
            parts.append(f"as for all: {limit[name]} {words}")
        else:
            parts.append(f"{limit[name]} {words}")
    return f"{limit['token']}: {', '.join(parts)}"


def _query(user: str) -> str:
    return f"?user_id={quote(user, safe='')}"


def _tell(answer: Any, line: str, *, json: bool) -> None:
    if json:
        print_json(answer)
    else:
        print(line)
