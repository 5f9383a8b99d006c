"""Values of metrics as the text that Prometheus reads."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vmbackup.daemon.series import ALL, Series

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


class Values:
    """Values by metric and labels; one that is set again is replaced, as a scrape with a series twice is refused."""

    def __init__(self) -> None:
        self._values: dict[Series, dict[tuple[str, ...], float]] = {}

    def set(self, series: Series, labels: Sequence[str], value: float) -> None:
        """The value of a series; `labels` in the order of its metric's."""
        assert len(labels) == len(series.labels)
        self._values.setdefault(series, {})[tuple(map(_text, labels))] = float(value)

    def show(self, *metrics: Series) -> None:
        """Metrics that are told of with HELP and TYPE even while they have no series."""
        for series in metrics:
            self._values.setdefault(series, {})

    def text(self) -> bytes:
        """The Prometheus text format, version 0.0.4, in the order of the metrics' list."""
        from prometheus_client import generate_latest
        from prometheus_client.registry import Collector

        values = self._values

        class Told(Collector):
            def collect(self) -> "Iterator[CounterMetricFamily | GaugeMetricFamily]":
                return (_family(series, values[series]) for series in ALL if series in values)

        return generate_latest(Told())


def _family(series: Series, values: dict[tuple[str, ...], float]) -> "CounterMetricFamily | GaugeMetricFamily":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    made = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
    family = made(series.name, series.help, labels=series.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _text(label: str) -> str:
    """Text that is UTF-8: a name out of JSON may hold half of a pair."""
    return label.encode("utf-8", "backslashreplace").decode()
