"""Pictures that come in are decoded in a thread of their own, one after another: nothing else waits for them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from vargen.server.errors import Refusal
from vargen.server.orders import Order

MOST_HELD = 1 << 30  # bytes of pictures that wait to be drawn with, or are


class Uploads:
    """Those of one server. Who hangs up before it is his turn costs nothing."""

    def __init__(self, most: int) -> None:
        """Of at most so many requests at a time."""
        self._pool, self._most = ThreadPoolExecutor(1, "uploads"), most
        self._waiting = self._held = 0

    async def run(
        self, guarded: Callable[[Awaitable[Order]], Awaitable[Order]], read: Callable[[], Order], until: float
    ) -> Order:
        """What `read` makes of pictures, awaited by `guarded`, until a time of `time.monotonic`. Refusal where it takes
        longer, or where too many wait.
        """
        if self._waiting >= max(1, self._most):
            message = f"{self._waiting} requests with pictures wait already"
            raise Refusal(429, message, code="queue_full", retry_after=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await guarded(asyncio.get_running_loop().run_in_executor(self._pool, read))
        except TimeoutError:
            raise Refusal(504, "the deadline has passed before the pictures were read", code="deadline") from None
        finally:
            self._waiting -= 1

    def check(self, order: Order) -> None:
        """Refusal where there is no room for an order's pictures beside those of others."""
        if order.bytes and self._held and self._held + order.bytes > MOST_HELD:
            raise Refusal(429, f"pictures of {self._held:,} bytes wait already", code="queue_full", retry_after=1)

    def hold(self, order: Order) -> None:
        """Its pictures are here."""
        self._held += order.bytes

    def free(self, order: Order) -> None:
        """They are gone."""
        self._held -= order.bytes
