"""How prices of simulated markets get to engines: by SNS as in the wide world, or pushed over HTTP."""

import http.client
from collections import deque
from collections.abc import Sequence

from pennyweight.agents.prices import TOPICS
from pennyweight.links.aws import Aws
from pennyweight.links.errors import LinkError
from pennyweight.products.loans.shared import Market

Address = tuple[str, int]
"""Where an engine listens."""

_PUSH_SECONDS = 2.0


class Pusher:
    """Pushes prices to engines over HTTP: to the one that took the last, then to the others.

    Only the owner of the book takes them, whoever that is at the moment.
    """

    def __init__(self, addresses: Sequence[Address], token: str = "") -> None:
        """`token` is an API key, where the engines want one."""
        self._addresses = deque(addresses)
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def __call__(self, market: Market, body: bytes) -> None:
        """Push one message. Raises LinkError, OSError: what the last one said."""
        path = f"/prices/{market.replace('_', '-')}"
        problem: Exception = LinkError("there is no engine")
        for _ in range(len(self._addresses)):
            try:
                return self._push(self._addresses[0], path, body)
            except (LinkError, OSError) as error:
                problem = error
                self._addresses.rotate(-1)
        raise problem

    def _push(self, address: Address, path: str, body: bytes) -> None:
        connection = http.client.HTTPConnection(*address, timeout=_PUSH_SECONDS)
        try:
            connection.request("POST", path, body, self._headers)
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise LinkError(f"POST {path}: {error}") from error
        finally:
            connection.close()
        if answer.status >= 300:
            raise LinkError(f"POST {path}: {answer.status} {text[:200].decode(errors='replace')}")


class Topics:
    """Publishes prices to SNS; the topics are made when they are needed."""

    def __init__(self, aws: Aws) -> None:
        """Nothing is asked yet."""
        self._aws = aws
        self._topics: dict[Market, str] = {}

    def __call__(self, market: Market, body: bytes) -> None:
        """Publish one message. Raises LinkError."""
        if market not in self._topics:
            self._topics[market] = self._aws.topic(TOPICS[market])
        self._aws.publish(self._topics[market], body.decode())
