"""Opening a book: from a store to an engine that stands where the book stands."""

from collections.abc import Iterable

from pennyweight.engine.engine import Engine, Submission
from pennyweight.engine.overlay import ASSET, Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.assets import BUILT_IN, Asset
from pennyweight.products.general import RegisterAsset

_PAGE = 1_000


class OpeningFailed(Exception):
    """The book cannot be opened as configured; the message says why."""


def standing_of(store: Store) -> Standing:
    """Read what an engine always has loaded."""
    return Standing(assets_of(store), dict(store.head().counters), store.cursors())


def assets_of(store: Store) -> dict[str, Asset]:
    """Read all assets: for lists of them, where the book may have another owner."""
    assets: dict[str, Asset] = {}
    after = ""
    while page := store.records(ASSET, after=after, limit=_PAGE):
        assets.update((record.id, record.read(Asset)) for record in page)
        after = page[-1].id
    return assets


def open_engine(
    store: Store,
    *,
    now: int,
    assets: Iterable[Asset] = BUILT_IN,
    users_max: int = 10_000,
    users_reserved: int = 0,
    queue_max: int = 20_000,
    batch_max: int = 1_000,
) -> Engine:
    """Return an engine on the store's book, with these assets registered.

    Raises OpeningFailed when an asset is registered with another scale or number.
    """
    engine = Engine(
        store.head(),
        standing_of(store),
        users_max=users_max,
        users_reserved=users_reserved,
        queue_max=queue_max,
        batch_max=batch_max,
    )
    missing = [asset for asset in assets if engine.standing.assets.get(asset.name) != asset]
    for asset in missing:
        engine.submit(Submission(RegisterAsset(asset.name, asset.scale, asset.currency_id)))
    while missing and (batch := engine.next_batch(now)) is not None:
        append = engine.decide(store.begin(*batch), lambda: False)
        if append is not None:
            store.append(append)
        for _, outcome in engine.committed():
            if not isinstance(outcome, Receipt):
                raise OpeningFailed(f"an asset could not be registered: {outcome}")
    return engine
