"""The figures, read back as a monitoring system reads them."""

from prometheus_client.parser import text_string_to_metric_families

from pennyweight.delivery.http.metrics import Metrics
from served import all_routes

ROUTES = all_routes()


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_batches() -> None:
    metrics = Metrics()
    metrics.observe_batch(1, 0.0001, 0.003)
    metrics.observe_batch(5_000, 0.00011, 9)
    found = samples(metrics)
    assert found["pennyweight_batch_commands_count", ()] == 2
    assert found["pennyweight_batch_commands_sum", ()] == 5_001
    sizes = {
        labels[0][1]: value
        for (name, labels), value in found.items()
        if name == "pennyweight_batch_commands_bucket"
    }
    assert (sizes["1.0"], sizes["1000.0"], sizes["+Inf"]) == (1, 1, 2)
    assert found["pennyweight_decide_seconds_bucket", (("le", "0.0001"),)] == 1
    assert found["pennyweight_decide_seconds_bucket", (("le", "0.0002"),)] == 2
    assert found["pennyweight_commit_seconds_bucket", (("le", "2.0"),)] == 1


def test_requests() -> None:
    metrics = Metrics()
    for status in (200, 200, 404):
        metrics.count(ROUTES[0], status)
    route = (("method", ROUTES[0].method), ("route", ROUTES[0].path))
    found = samples(metrics)
    assert found["pennyweight_requests_total", (*route, ("status", "200"))] == 2
    assert found["pennyweight_requests_total", (*route, ("status", "404"))] == 1
