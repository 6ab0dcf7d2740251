"""Portfolios for the demo: a market that drifts, a provider that tells, owners who trade.

Each owner holds quantities of a few assets, whose prices walk for all alike. The provider
tells what a portfolio has become, sometimes twice, sometimes to be queued; owners carry most
of what is proposed out, look at previews, pay money in and change their policies. Everything
is integers; the same seed and the same answers make the same requests.
"""

import http.client
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol, Self
from urllib.parse import quote

import msgspec

from pennyweight.ledger.money import to_units
from pennyweight.products.portfolios.shared import DECIMALS, WHOLE, percent_text, shared_out

NO_ANSWER = 0
"""Stands for a status where none came in time."""

PORTFOLIOS = 12
UPDATES_PER_SECOND = 4.0
_ASK_SECONDS = 5.0
_AHEAD_MAX = 200
"""Transactions that wait to be carried out; older ones are forgotten."""

_PRICE = 1_000_000
_TIMES_MAX = 20
"""Between which part and which multiple of their first value prices stay."""

_PER_MILLION = 1_000_000
_STEPS: Mapping[str, int] = {
    "stocks": 12_000,
    "bonds": 3_000,
    "gold": 8_000,
    "crypto": 25_000,
    "cash": 0,
}
"""By how much an asset's price moves at most in a step, in millionths."""

_CENTS = 100
_WORTH = 100_000 * _CENTS
_SHOWN = 10**6
"""Percentages are told with four decimals: so many of them are a hundred."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Profile(NamedTuple):
    """A kind of owner: what the portfolio is to be, and by which policy, as on the wire."""

    target: Mapping[str, int]
    policy: Mapping[str, Any] | None


PROFILES: Sequence[Profile] = (
    Profile({"stocks": 60, "bonds": 30, "gold": 10}, None),
    Profile(
        {"stocks": 60, "bonds": 30, "gold": 10},
        {"bands": {"absolute": 5, "relative": 25}, "minimum_trade": "0.5"},
    ),
    Profile(
        {"stocks": 45, "bonds": 40, "gold": 10, "crypto": 5},
        {"bands": {"absolute": 2}, "trade_to": "band", "asset_bands": {"crypto": {"relative": 50}}},
    ),
    Profile(
        {"stocks": 50, "bonds": 35, "cash": 15},
        {"drift_score": 3, "cash_asset": "cash", "cash_first": True},
    ),
    Profile(
        {"stocks": 70, "gold": 20, "crypto": 10},
        {"drift_score": 2, "locked": ["gold"], "turnover_max": 4},
    ),
    Profile(
        {"stocks": 40, "bonds": 40, "cash": 20},
        {"calendar": "daily", "cash_asset": "cash", "buy_only": True},
    ),
)


# ── who is talked to ──────────────────────────────────────────────────────────────


class Desk(Protocol):
    """What the demo talks to."""

    def ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Send a request; return status and body of the answer, `NO_ANSWER` where none came."""


class HttpDesk:
    """An engine's face of portfolios, over one connection that is kept."""

    def __init__(self, address: tuple[str, int], token: str = "") -> None:
        """`token` is an API key, where the face wants one."""
        self._connection = http.client.HTTPConnection(*address, timeout=_ASK_SECONDS)
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """See `Desk`. After a failure it connects anew."""
        try:
            self._connection.request(method, path, body, self._headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return NO_ANSWER, b""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class _Proposed(msgspec.Struct, frozen=True):
    """A transaction as it is answered."""

    id: str
    asset: str
    action: Literal["BUY", "SELL"]
    rebalance_percent: msgspec.Raw


_proposed_decoder = msgspec.json.Decoder(list[_Proposed])


# ── the market ────────────────────────────────────────────────────────────────────


class Market:
    """Prices that walk, each step by up to its asset's own share, and never far away."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.prices = dict.fromkeys(_STEPS, _PRICE)

    def step(self) -> None:
        """Move all prices."""
        for asset, most in _STEPS.items():
            factor = _PER_MILLION + self._draw.randint(-most, most)
            price = self.prices[asset] * factor // _PER_MILLION
            self.prices[asset] = min(_TIMES_MAX * _PRICE, max(_PRICE // _TIMES_MAX, price))


class Owner:
    """A user with a portfolio: what is held of each asset, in millionths of a cent's worth."""

    def __init__(self, user: str, profile: Profile, market: Market) -> None:
        self.user = user
        self.profile = profile
        self._market = market
        self.held = {
            asset: _WORTH * percent // 100 * _PER_MILLION // market.prices[asset]
            for asset, percent in profile.target.items()
        }

    @property
    def values(self) -> dict[str, int]:
        """What the holdings are worth, in cents."""
        prices = self._market.prices
        return {asset: held * prices[asset] // _PER_MILLION for asset, held in self.held.items()}

    def allocation(self) -> dict[str, str]:
        """Return the holdings in percent, with four decimals, together 100."""
        values = self.values
        shares = shared_out(_SHOWN, list(values.values()))
        unit = WHOLE // _SHOWN
        return {
            asset: percent_text(share * unit) for asset, share in zip(values, shares, strict=True)
        }

    def pay_in(self, cents: int) -> None:
        """Add money, where the portfolio has a place for it."""
        if "cash" in self.held:
            self.held["cash"] += cents * _PER_MILLION // self._market.prices["cash"]

    def trade(self, asset: str, change: int) -> None:
        """Carry a change out, in weights of the whole; nothing is sold that is not there."""
        worth = sum(self.values.values()) * change // WHOLE
        held = self.held.get(asset, 0) + worth * _PER_MILLION // self._market.prices[asset]
        self.held[asset] = max(0, held)


# ── the demo ──────────────────────────────────────────────────────────────────────


class PortfolioCounts(msgspec.Struct, frozen=True):
    """What came of it so far. `failed` is what was refused or not answered."""

    portfolios: int = 0
    updates: int = 0
    queued: int = 0
    proposed: int = 0
    executed: int = 0
    failed: int = 0


class PortfoliosDemo:
    """Live traffic of portfolios, in a thread of its own; `with` starts and stops it."""

    def __init__(
        self,
        desk: Desk,
        users: Sequence[str],
        *,
        seed: int = 1,
        per_second: float = UPDATES_PER_SECOND,
        now: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        """`users` get the portfolios; so many requests are made `per_second`.

        `now` is the provider's clock, in microseconds.
        """
        self._desk = desk
        self._draw = random.Random(f"portfolios {seed}")
        self._market = Market(self._draw)
        self._owners = [
            Owner(user, PROFILES[number % len(PROFILES)], self._market)
            for number, user in enumerate(users)
        ]
        self._pause_seconds = 1 / per_second
        self._now = now
        self._requests = 0
        self._known: list[Owner] = []
        self._to_trade: deque[tuple[Owner, _Proposed]] = deque(maxlen=_AHEAD_MAX)
        self._last: tuple[str, bytes] | None = None
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="portfolios-demo", daemon=True)
        shares: dict[Callable[[], None], int] = {
            self._update: 22,
            self._execute: 56,
            self._update_async: 6,
            self._repeat: 4,
            self._preview: 4,
            self._look: 4,
            self._pay_in: 3,
            self._change_policy: 1,
        }
        self._kinds, self._weights = list(shares), list(shares.values())

    @property
    def counts(self) -> PortfolioCounts:
        """How it stands."""
        with self._lock:
            return PortfolioCounts(**self._counts)

    def text(self) -> str:
        """Say how it stands, in a line."""
        counts = self.counts
        failed = f", {counts.failed} failed" if counts.failed else ""
        return (
            f"portfolios: {counts.portfolios}, {counts.updates} updates ({counts.queued} queued),"
            f" {counts.proposed} transactions proposed, {counts.executed} executed{failed}"
        )

    def step(self) -> None:
        """Make one request: until all portfolios are there, create one; then whatever comes."""
        if len(self._known) < len(self._owners):
            self._create(self._owners[len(self._known)])
            return
        self._market.step()
        self._draw.choices(self._kinds, self._weights)[0]()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the request under way; nothing is sent afterwards."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        """See `start`."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """See `stop`."""
        self.stop()

    def _run(self) -> None:
        """Make requests, with a pause after each but one that made a portfolio."""
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            known = len(self._known)
            self.step()
            if len(self._known) == known:
                due = max(due + self._pause_seconds, time.monotonic())

    # ── kinds ─────────────────────────────────────────────────────────────────────

    def _create(self, owner: Owner) -> None:
        """Create a portfolio; a book of an earlier demo may have it, by now with another policy."""
        body: dict[str, Any] = {"user_id": owner.user, "allocation": owner.profile.target}
        if owner.profile.policy is not None:
            body["policy"] = owner.profile.policy
        status, _ = self._desk.ask("POST", "/portfolio", msgspec.json.encode(body))
        if status in {200, 201, 409}:
            self._known.append(owner)
            self._count("portfolios")
        else:
            self._count("failed")

    def _update(self) -> None:
        self._tell(self._draw.choice(self._known), "/rebalance")

    def _update_async(self) -> None:
        self._tell(self._draw.choice(self._known), "/rebalance?mode=async")

    def _tell(self, owner: Owner, path: str) -> None:
        """Tell what a portfolio has become, and note what is to be traded."""
        body = msgspec.json.encode(self._told(owner))
        self._last = (path, body)
        status, answer = self._desk.ask("POST", path, body)
        if status == 202:
            self._count("updates")
            self._count("queued")
        elif status == 200:
            self._count("updates")
            proposed = _proposed_decoder.decode(answer)
            self._count("proposed", len(proposed))
            self._forget(owner)
            self._to_trade.extend((owner, one) for one in proposed)
        else:
            self._count("failed")

    def _told(self, owner: Owner) -> dict[str, Any]:
        self._requests += 1
        now = _EPOCH + timedelta(microseconds=self._now())
        return {
            "user_id": owner.user,
            "new_allocation": owner.allocation(),
            "request_id": f"demo-{self._now()}-{self._requests}",
            "as_of": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }

    def _forget(self, owner: Owner) -> None:
        """Leave what an earlier update of an owner proposed; the newest one counts."""
        kept = [one for one in self._to_trade if one[0] is not owner]
        self._to_trade.clear()
        self._to_trade.extend(kept)

    def _repeat(self) -> None:
        """Send the last update once more, as a provider does that lost the answer."""
        if self._last is None:
            return self._update()
        path, body = self._last
        status, _ = self._desk.ask("POST", path, body)
        # One that was queued meanwhile, or an update of the same moment, may be newer.
        self._count("updates" if status in {200, 202, 409} else "failed")
        return None

    def _execute(self) -> None:
        """Carry the oldest proposal out, and mark it so."""
        if not self._to_trade:
            return self._update()
        owner, proposed = self._to_trade.popleft()
        path = f"/rebalance-transactions/{quote(proposed.id, safe='')}/executed"
        status, _ = self._desk.ask("POST", path, b"{}")
        if status != 200:
            return self._count("failed")
        change = to_units(bytes(proposed.rebalance_percent).decode(), DECIMALS)
        owner.trade(proposed.asset, change if proposed.action == "BUY" else -change)
        return self._count("executed")

    def _preview(self) -> None:
        body = self._told(self._draw.choice(self._known))
        self._seen(*self._desk.ask("POST", "/rebalance/preview", msgspec.json.encode(body)))

    def _look(self) -> None:
        path = self._draw.choice(("/portfolio", "/rebalance-transactions"))
        user = quote(self._draw.choice(self._known).user, safe="")
        self._seen(*self._desk.ask("GET", f"{path}?user_id={user}", None))

    def _pay_in(self) -> None:
        """Pay up to a twentieth of the first worth in; the next update tells."""
        owner = self._draw.choice(self._known)
        owner.pay_in(self._draw.randrange(1, _WORTH // 20))
        self._tell(owner, "/rebalance")

    def _change_policy(self) -> None:
        """Give an owner the policy of another kind with the same assets, or none."""
        owner = self._draw.choice(self._known)
        assets = owner.profile.target.keys()
        policies = [one.policy for one in PROFILES if one.target.keys() == assets]
        body = {"user_id": owner.user, "policy": self._draw.choice([*policies, None])}
        self._seen(*self._desk.ask("PUT", "/portfolio/policy", msgspec.json.encode(body)))

    def _seen(self, status: int, _: bytes) -> None:
        if status != 200:
            self._count("failed")

    def _count(self, what: str, more: int = 1) -> None:
        with self._lock:
            self._counts[what] += more
