"""The span of a call continues its caller's trace, also when that is not recorded."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from kit.runtime import tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
PATH = "/desk.v1.Desk/Ask"


@pytest.fixture(autouse=True)
def _recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are made by OpenTelemetry's SDK, as in a process that exports them."""
    monkeypatch.setattr(tracing, "_tracer", TracerProvider().get_tracer("tests"))


def test_an_unsampled_trace_goes_on_under_a_span_id_of_its_own() -> None:
    with tracing.serving(PATH, (("traceparent", f"00-{TRACE}-{PARENT}-00"),)) as span:
        assert not span.is_recording()
        assert tracing.trace_id() == TRACE
        version, trace_id, span_id, flags = tracing.traceparent().split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "00")
    assert span_id not in (PARENT, "0" * 16)
    assert tracing.trace_id() == ""


def test_an_unsampled_trace_costs_no_span_of_opentelemetrys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy sends a `tracestate` without a value when the caller sent none."""

    class NoIds(RandomIdGenerator):
        def generate_span_id(self) -> int:
            raise AssertionError

    monkeypatch.setattr(tracing, "_tracer", TracerProvider(id_generator=NoIds()).get_tracer("tests"))
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-00"), ("tracestate", ""))
    with tracing.serving(PATH, metadata):
        assert tracing.trace_id() == TRACE


def test_a_sampled_trace_is_recorded() -> None:
    with tracing.serving(PATH, (("traceparent", f"00-{TRACE}-{PARENT}-01"),)) as span:
        assert span.is_recording()
        assert tracing.traceparent().startswith(f"00-{TRACE}-")
        assert tracing.traceparent().endswith("-01")
    assert tracing.trace_id() == ""


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{PARENT}-00",
        f"00-{TRACE}-{'0' * 16}-00",
        f"ff-{TRACE}-{PARENT}-00",
        f"00-{TRACE}-{PARENT}-00-more",
    ],
)
def test_an_invalid_trace_is_not_continued(traceparent: str) -> None:
    with tracing.serving(PATH, (("traceparent", traceparent),)):
        assert tracing.trace_id() not in ("", TRACE, "0" * 32)


def test_the_state_of_a_trace_is_handed_on() -> None:
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-00"), ("tracestate", "vendor=1"))
    with tracing.serving(PATH, metadata):
        assert trace.get_current_span().get_span_context().trace_state.to_header() == "vendor=1"


def test_the_outer_span_is_current_again_after_an_error() -> None:
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
    with pytest.raises(ValueError, match="no"), tracing.serving(PATH, metadata):
        raise ValueError("no")
    assert tracing.trace_id() == ""
