"""Numbers for Prometheus, in its text format."""

from collections.abc import Iterator, Sequence

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Number:
    """A counter, or a gauge; with a value for each of its label's values where it has a label."""

    def __init__(self, name: str, words: str, kind: str, label: str | None = None) -> None:
        self._name, self._words, self._kind, self._label = name, words, kind, label
        self._values: dict[str, float] = {} if label else {"": 0.0}

    def add(self, amount: float, value: str = "") -> None:
        """Count `amount` more."""
        self._values[value] = self._values.get(value, 0.0) + amount

    def set(self, amount: float) -> None:
        """It is `amount` now."""
        self._values[""] = amount

    def value(self) -> float:
        """What it is now, of all values of its label together."""
        return sum(self._values.values())

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield from _head(self._name, self._words, self._kind)
        for value, amount in self._values.items():
            yield (
                f'{self._name}{{{self._label}="{value}"}} {amount:.17g}'
                if self._label
                else f"{self._name} {amount:.17g}"
            )


class Histogram:
    """How often values were at most so large."""

    def __init__(self, name: str, words: str, bounds: Sequence[float]) -> None:
        self._name, self._words, self._bounds = name, words, bounds
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Note a value."""
        self._counts[next((i for i, bound in enumerate(self._bounds) if value <= bound), -1)] += 1
        self._sum += value

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield from _head(self._name, self._words, "histogram")
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self._name}_bucket{{le="{bound}"}} {total}'
        yield f"{self._name}_sum {self._sum:.17g}"
        yield f"{self._name}_count {total}"


def _head(name: str, words: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {words}", f"# TYPE {name} {kind}"


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.requests = Number("vargen_requests_total", "Requests for images, by status.", "counter", "status")
        self.images = Number("vargen_images_total", "Images drawn, by model.", "counter", "model")
        self.forwards = Number("vargen_forwards_total", "Forwards of models.", "counter")
        self.abandoned = Number("vargen_abandoned_total", "Requests given up while they were drawn.", "counter")
        self.waiting = Number("vargen_requests_waiting", "Requests in the queue.", "gauge")
        self.running = Number("vargen_batches_running", "Batches that are drawn.", "gauge")
        self.seats = Number("vargen_seats_taken", "Seats of images that are drawn, or about to be.", "gauge")
        self.tokens = Number("vargen_tokens_total", "Tokens drawn, of images that were sent.", "counter")
        self.read = Number("vargen_prompt_tokens_total", "Tokens of prompts and classes of these.", "counter")
        self.cached = Number(
            "vargen_cached_tokens_total", "Tokens of these, and of guidance's, that were kept and not read.", "counter"
        )
        self.workers = Number("vargen_workers_ready", "Workers that are up.", "gauge")
        self.rows = Histogram("vargen_batch_rows", "Images that are drawn when a request begins.", ROWS)
        self.seconds = Histogram("vargen_request_seconds", "Seconds of a request, the queue included.", SECONDS)
        self.first = Histogram("vargen_first_picture_seconds", "Seconds to the first picture.", SECONDS)
        self.waited = Histogram("vargen_wait_seconds", "Seconds in the queue.", SECONDS)

    def text(self) -> str:
        """All of it."""
        return "\n".join(line for value in vars(self).values() for line in value.lines()) + "\n"
