"""The configuration: one TOML file and PENNYWEIGHT_* variables, read once.

The environment wins over the file, the command line over both. A name that is not known
is an error that lists the known ones. `pennyweight config` prints what is in effect and
where each value comes from.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from pennyweight.stores.places import BadPlace, read_url, shown

PREFIX = "PENNYWEIGHT_"
NOT_SETTINGS = frozenset({"PENNYWEIGHT_CONFIG", "PENNYWEIGHT_DATA", "PENNYWEIGHT_KEY"})
"""Variables that say where configuration and book are, or who asks, and are no settings themselves."""

TEST_PREFIX = "PENNYWEIGHT_TEST_"
"""Variables of the test suite; never settings."""

ALIASES = {
    "KAFKA_BROKER": "kafka.broker",
    "KAFKA_TOPIC": "kafka.rebalance_topic",
    "ELASTICSEARCH_URL": "search.url",
    "PENNYWEIGHT_SETTLEMENTS_TOPIC": "kafka.settlements_topic",
    "DATABASE_URL": "store.url",
    "AWS_ENDPOINT": "aws.endpoint",
    "AWS_ENDPOINT_URL": "aws.endpoint",
    "AWS_DEFAULT_REGION": "aws.region",
    "AWS_REGION": "aws.region",
    "MOS_ESPA_URL": "loans.mos_espa_url",
    "BLACK_SPIRE_URL": "loans.black_spire_url",
}
"""Variables by the names that others gave them; of two for one setting the later, and ours win."""

DESK_FACES = ("loan-desk", "portfolio-desk", "dead-letters")
"""Faces that cannot be opened to callers without a key."""

FACES = ("ledger", "payments", "wallet", "withdrawals", "loans", "portfolios")

WORKERS_MAX = 64
LEASE_SECONDS = (0.5, 60.0)
HOLD_SECONDS = (0.0, 60.0)
SEARCH_SECONDS = (0.1, 300.0)
SEARCH_DOCUMENTS_MAX = 10_000
_HIDDEN = "***"

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,200}")
_BROKER = re.compile(r"\s*(\[[0-9a-fA-F:.]+\]|[^\s:/,]+):[0-9]{1,5}\s*")
_INDEX_PREFIX = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})?")
_BOOK = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_USER_INFO = re.compile(r"(//).*@")
_HTTP_URL = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
_LOANS_BOUNDS = {
    "age_seconds": (0.1, 3_600.0),
    "deviation_percent": (0.1, 100.0),
    "jump_percent": (0.1, 100.0),
    "venue_timeout_seconds": (0.05, 30.0),
    "venue_margin_seconds": (0.05, 30.0),
}
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/,@]+):[0-9]{1,5}")


SECRET_LENGTH_MIN = 16


class ConfigError(Exception):
    """The configuration cannot be used; the message says why in one line."""


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to listen. Port 0 takes a free one. `workers` are the processes that speak HTTP."""

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1


class Store(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the book is, if not in the folder given by `--data`.

    `url` is postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or sqlite:FOLDER. `book` is the
    book's name in a database; in a folder there is only `main`.
    """

    url: str = ""
    book: str = "main"


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How instances that share a book find one another.

    The owner listens for the others at `listen` (HOST:PORT; port 0 takes a free one), and
    they reach it at `advertise`, where that is another address. `lease_seconds` is how
    long an owner may be silent before the next one takes over, `hold_seconds` how long a
    request waits for an owner. `secret` is what instances prove themselves by; without one
    they make one and keep it in the book.
    """

    listen: str = "127.0.0.1:0"
    advertise: str = ""
    lease_seconds: float = 3.0
    hold_seconds: float = 10.0
    secret: str = ""


class Cache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bound on customers (user: and account: holders) whose data is in memory."""

    users_max: int = 10_000


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Commands that may wait in each lane, and that one batch may have."""

    queue_max: int = 20_000
    batch_max: int = 1_000


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Faces that are served without a key on any address."""

    open_faces: tuple[str, ...] = ()


class Payments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of the published dialects the payments face speaks."""

    profile: Literal["seed", "head"] = "seed"


class Wallet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the wallet face checks besides the book. An empty list or text: not checked.

    `public_key` is the path of a PEM file: the provider's requests must then be signed.
    `partners` are the `sub_partner_id`s that are served, `bet_max` is decimal text in the
    currency's natural unit.
    """

    dialect: str = "hub88"
    one_win_per_bet: bool = False
    is_disabled: bool = False
    partners: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    expired_tokens: tuple[str, ...] = ()
    games: tuple[str, ...] = ()
    currencies: tuple[str, ...] = ()
    bet_max: str = ""
    public_key: str = ""


class Kafka(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where settlements and updates of portfolios come from, and events go to. No `broker`: no Kafka.

    `broker` is HOST:PORT, or several with commas. Dead letters go to `<topic>.dead-letters`
    of the topic that they came from. `options` are further settings of the client, as
    name=value: `security.protocol=SASL_SSL`.
    """

    broker: str = ""
    settlements_topic: str = "risk-engine-settlements"
    rebalance_topic: str = "rebalance"
    events_topic: str = "risk-engine-events"
    group: str = "pennyweight"
    options: tuple[str, ...] = ()


class Aws(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where SNS and SQS are: prices in, notices out. No `endpoint`: neither; "aws": Amazon's own.

    Credentials are found as AWS' own clients find them (AWS_ACCESS_KEY_ID, a profile, ...).
    """

    endpoint: str = ""
    region: str = "us-east-1"


class Loans(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How loans are watched and liquidated; their face is always there.

    `is_watched`: prices are followed and liquidations carried out even without AWS. `dialect`
    picks the names that bank and venues use. A quote counts for `age_seconds`; markets that
    differ by more than `deviation_percent`, or a quote that differs by more than
    `jump_percent` from the one before it, start nothing new. An order waits
    `venue_timeout_seconds`, and is sent only while the book is ours for that and
    `venue_margin_seconds` more. `is_push_open` lets the lender's desk push prices over HTTP, to the
    process that owns the book.
    """

    is_watched: bool = False
    dialect: Literal["seed", "later"] = "seed"
    mos_espa_url: str = "http://localhost:3003"
    black_spire_url: str = "http://localhost:3002"
    age_seconds: float = 10.0
    deviation_percent: float = 5.0
    jump_percent: float = 30.0
    venue_timeout_seconds: float = 1.0
    venue_margin_seconds: float = 0.5
    is_push_open: bool = False


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where documents of everything in the book go: Elasticsearch 8, OpenSearch 2 or 3. No `url`: nowhere.

    `url` is http://HOST:PORT or https://USER:PASSWORD@HOST:PORT/PATH; `api_key` goes before a
    user. Indices are called `prefix` and their name. `documents_max` are sent at a time.
    """

    url: str = ""
    api_key: str = ""
    prefix: str = ""
    documents_max: int = 1_000
    timeout_seconds: float = 30.0


class Log(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How logs are written, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class AssetSetting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One more asset to register; its scale is fixed for ever."""

    name: str
    scale: int
    currency_id: int


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    server: Server = Server()
    store: Store = Store()
    cluster: Cluster = Cluster()
    cache: Cache = Cache()
    engine: EngineLimits = EngineLimits()
    auth: Auth = Auth()
    payments: Payments = Payments()
    wallet: Wallet = Wallet()
    kafka: Kafka = Kafka()
    aws: Aws = Aws()
    loans: Loans = Loans()
    search: Search = Search()
    log: Log = Log()
    assets: tuple[AssetSetting, ...] = ()

    @property
    def is_watching_loans(self) -> bool:
        """Whether prices are followed, loans liquidated and notices sent where the book is owned."""
        return self.loans.is_watched or bool(self.aws.endpoint)


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, and where each of its values comes from, by dotted name."""

    config: Config
    origins: dict[str, str]

    def values(self) -> dict[str, Any]:
        """Return every value by its dotted name, as JSON values; secrets are hidden."""
        tree = msgspec.to_builtins(self.config)
        values = {name: _pick(tree, name) for name in NAMES}
        values["store.url"] = shown(values["store.url"])
        if values["cluster.secret"]:
            values["cluster.secret"] = _HIDDEN
        if values["search.api_key"]:
            values["search.api_key"] = _HIDDEN
        for name in ("aws.endpoint", "loans.mos_espa_url", "loans.black_spire_url", "search.url"):
            values[name] = _USER_INFO.sub(rf"\1{_HIDDEN}@", values[name])
        values["kafka.options"] = [_without_password(option) for option in values["kafka.options"]]
        return values


def _names() -> dict[str, Any]:
    """Return the type of every setting by its dotted name."""
    names: dict[str, Any] = {}
    for section in msgspec.structs.fields(Config):
        if isinstance(section.default, msgspec.Struct):
            for field in msgspec.structs.fields(section.type):
                names[f"{section.name}.{field.name}"] = field.type
        else:
            names[section.name] = section.type
    return names


NAMES = _names()
"""The type of every setting, by its dotted name: `cache.users_max`."""


def variable_of(name: str) -> str:
    """Return the environment variable of a setting: `cache.users_max` is PENNYWEIGHT_CACHE_USERS_MAX."""
    return PREFIX + name.replace(".", "_").upper()


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read the configuration; `overrides` are values of the command line by dotted name.

    Raises ConfigError.
    """
    environment = os.environ if environment is None else environment
    tree: dict[str, Any] = {}
    origins = dict.fromkeys(NAMES, "default")
    if path is not None:
        for name, value in _flatten(_read_file(path), f"file {path}"):
            _put(tree, name, value)
            origins[name] = f"file {path}"
    for name, variable, text in _settings_of(environment):
        _put(tree, name, _value_of(name, variable, text))
        origins[name] = variable
    for name, value in (overrides or {}).items():
        _put(tree, name, value)
        origins[name] = "command line"
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), origins)) from None
    _check(config, origins)
    return Loaded(config, origins)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _flatten(tree: dict[str, Any], origin: str) -> list[tuple[str, Any]]:
    """Return a file's values by dotted name. Raises ConfigError for one that is not known."""
    values: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if name in NAMES:
            values.append((name, value))
        elif isinstance(value, dict) and any(known.startswith(f"{name}.") for known in NAMES):
            for key, inner in value.items():
                if f"{name}.{key}" not in NAMES:
                    raise _unknown(f"{name}.{key}", origin)
                values.append((f"{name}.{key}", inner))
        else:
            raise _unknown(name, origin)
    return values


def _settings_of(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (name, variable, text) of every setting in the environment. Raises ConfigError."""
    by_variable = {variable_of(name): name for name in NAMES}
    settings = [
        (name, alias, environment[alias])
        for alias, name in ALIASES.items()
        if environment.get(alias)
    ]
    for variable, text in environment.items():
        if (
            not variable.startswith(PREFIX)
            or variable in NOT_SETTINGS
            or variable in ALIASES
            or variable.startswith(TEST_PREFIX)
        ):
            continue
        if variable not in by_variable:
            known = ", ".join(sorted(by_variable))
            raise ConfigError(f"unknown variable {variable}; known are {known}")
        settings.append((by_variable[variable], variable, text))
    return settings


def _value_of(name: str, variable: str, text: str) -> Any:
    """Read a variable's text as its setting's type: lists by commas or as JSON."""
    kind = NAMES[name]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{variable} is {text!r}, not a whole number") from None
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{variable} is {text!r}, not a number") from None
    if kind is bool:
        if text.lower() not in {"true", "false"}:
            raise ConfigError(f"{variable} is {text!r}, not true or false")
        return text.lower() == "true"
    if getattr(kind, "__origin__", None) is tuple:
        if text.startswith("["):
            try:
                return msgspec.json.decode(text)
            except msgspec.DecodeError:
                raise ConfigError(f"{variable} is {text!r}, not a JSON list") from None
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _check(config: Config, origins: Mapping[str, str]) -> None:
    """Check what types cannot say. Raises ConfigError."""
    if not 0 <= config.server.port <= 65_535:
        raise ConfigError(f"server.port is {config.server.port}, not between 0 and 65535")
    _check_store(config, origins["store.url"])
    _check_users_max(config.cache.users_max)
    if config.engine.queue_max < 1 or config.engine.batch_max < 1:
        raise ConfigError("engine.queue_max and engine.batch_max are at least 1")
    kafka = config.kafka
    topics = ("settlements_topic", "rebalance_topic", "events_topic")
    for name in topics:
        if _TOPIC.fullmatch(getattr(kafka, name)) is None:
            raise ConfigError(
                f"kafka.{name} is {getattr(kafka, name)!r}; a topic has 1 to 200 letters, "
                "digits, dots, dashes and underscores"
            )
    for one, other in combinations(topics, 2):
        if getattr(kafka, one) == getattr(kafka, other):
            raise ConfigError(f"kafka.{one} and kafka.{other} are the same")
    if kafka.broker and not all(_BROKER.fullmatch(place) for place in kafka.broker.split(",")):
        raise ConfigError(f"kafka.broker is {kafka.broker!r}, not HOST:PORT")
    for option in kafka.options:
        if not option.partition("=")[2]:
            raise ConfigError(f"kafka.options has {option!r}, which is not name=value")
    _check_loans(config)
    _check_search(config.search)
    for face in config.auth.open_faces:
        if face in DESK_FACES:
            raise ConfigError(f"auth.open_faces names {face!r}, which is never open without a key")
        if face not in FACES:
            raise ConfigError(f"auth.open_faces names {face!r}; faces are {', '.join(FACES)}")


def _check_loans(config: Config) -> None:
    """Check how loans are watched. Raises ConfigError."""
    loans = config.loans
    urls = {
        "aws.endpoint": config.aws.endpoint,
        "loans.mos_espa_url": loans.mos_espa_url,
        "loans.black_spire_url": loans.black_spire_url,
    }
    for name, url in urls.items():
        is_left_out = name == "aws.endpoint" and url in {"", "aws"}
        if not is_left_out and _HTTP_URL.fullmatch(url) is None:
            raise ConfigError(f"{name} is {url!r}, not like http://HOST:PORT")
    for name, (low, high) in _LOANS_BOUNDS.items():
        value = getattr(loans, name)
        if not low <= value <= high:
            raise ConfigError(f"loans.{name} is {value:g}, not {low:g} to {high:g}")
    if loans.is_push_open and config.server.workers > 1:
        raise ConfigError(
            "loans.is_push_open is of no use with server.workers above 1: the process that owns the "
            "book speaks no HTTP then"
        )
    seconds = loans.venue_timeout_seconds + loans.venue_margin_seconds
    is_leased = config.is_watching_loans and config.store.url
    if is_leased and seconds >= config.cluster.lease_seconds * 2 / 3:
        raise ConfigError(
            f"loans.venue_timeout_seconds and venue_margin_seconds make {seconds:g} s, which must "
            f"be less than two thirds of cluster.lease_seconds ({config.cluster.lease_seconds:g})"
        )


def _is_http(url: str) -> bool:
    """Whether this is a URL that can be asked: with a host, and a port that is one."""
    if _HTTP_URL.fullmatch(url) is None:
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _check_search(search: Search) -> None:
    """Check where documents go. Raises ConfigError."""
    if search.url and not _is_http(search.url):
        url = _USER_INFO.sub(rf"\1{_HIDDEN}@", search.url)
        raise ConfigError(f"search.url is {url!r}, not like http://HOST:PORT")
    if _INDEX_PREFIX.fullmatch(search.prefix) is None:
        raise ConfigError(
            f"search.prefix is {search.prefix!r}; it has at most 64 lower-case letters, digits, "
            "dots, dashes and underscores, and begins with a letter or digit"
        )
    if not 1 <= search.documents_max <= SEARCH_DOCUMENTS_MAX:
        raise ConfigError(
            f"search.documents_max is {search.documents_max}, not 1 to {SEARCH_DOCUMENTS_MAX}"
        )
    low, high = SEARCH_SECONDS
    if not low <= search.timeout_seconds <= high:
        raise ConfigError(
            f"search.timeout_seconds is {search.timeout_seconds:g}, not {low:g} to {high:g}"
        )


def _check_store(config: Config, origin: str) -> None:
    """Check where the book is, and how instances share it. Raises ConfigError."""
    if not 1 <= config.server.workers <= WORKERS_MAX:
        raise ConfigError(f"server.workers is {config.server.workers}, not 1 to {WORKERS_MAX}")
    if config.store.url:
        try:
            read_url(config.store.url)
        except BadPlace as error:
            raise ConfigError(f"store.url ({origin}): {error}") from None
    if _BOOK.fullmatch(config.store.book) is None:
        raise ConfigError(f"store.book is {config.store.book!r}; a book is named like main or eu-2")
    cluster = config.cluster
    for name, (low, high) in (("lease_seconds", LEASE_SECONDS), ("hold_seconds", HOLD_SECONDS)):
        seconds = getattr(cluster, name)
        if not low <= seconds <= high:
            raise ConfigError(f"cluster.{name} is {seconds:g}, not {low:g} to {high:g}")
    if cluster.secret and len(cluster.secret) < SECRET_LENGTH_MIN:
        raise ConfigError(f"cluster.secret has fewer than {SECRET_LENGTH_MIN} characters")
    for name in ("listen", "advertise"):
        address = getattr(cluster, name)
        if (address or name == "listen") and _HOST_AND_PORT.fullmatch(address) is None:
            raise ConfigError(f"cluster.{name} is {address!r}, not HOST:PORT")


def _without_password(option: str) -> str:
    """Hide the value of an option whose name speaks of a password, a key or a secret."""
    name, _, _ = option.partition("=")
    is_secret = any(word in name.lower() for word in ("password", "secret", "key.pem"))
    return f"{name}={_HIDDEN}" if is_secret else option


def _check_users_max(users_max: int) -> None:
    """Raises ConfigError. The engine is imported only here: the command line must start quickly."""
    from pennyweight.engine.engine import HOLDERS_MAX, USERS_MIN  # noqa: PLC0415

    if users_max < USERS_MIN:
        raise ConfigError(
            f"cache.users_max is {users_max}, below {USERS_MIN}: one command may touch "
            f"{HOLDERS_MAX} users, and bring an entry and a receipt of others along"
        )


def _explain(message: str, origins: Mapping[str, str]) -> str:
    """Name the setting, not the path inside our structs, in a validation error."""
    text, _, path = message.partition(" - at `$.")
    name = path.rstrip("`")
    origin = origins.get(name.partition("[")[0], "")
    return f"{name} ({origin}): {text}" if name and origin else message


def _unknown(name: str, origin: str) -> ConfigError:
    return ConfigError(f"unknown setting {name} in {origin}; known are {', '.join(sorted(NAMES))}")


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    section, _, key = name.partition(".")
    if key:
        tree.setdefault(section, {})[key] = value
    else:
        tree[section] = value


def _pick(tree: dict[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return tree[section][key] if key else tree[section]
