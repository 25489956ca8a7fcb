"""Forecasts for the wire."""

from controller.domain.forecast import Span
from controller.services.forecasts import ForecastView, question_text
from lighterman.v1 import fleet_pb2


def forecast_message(view: ForecastView, seed: int) -> fleet_pb2.Forecast:
    """A forecast for the wire."""
    found, question = view.forecast, view.question
    return fleet_pb2.Forecast(
        devices=found.devices,
        runs=found.runs,
        duration_s=_span(found.duration_s),
        bytes=_span(found.bytes),
        exposed=_span(found.exposed),
        hit=_span(found.hit),
        waves=[
            fleet_pb2.ForecastWave(
                number=wave.number, cumulative=wave.cumulative, passed_s=_span(passed)
            )
            for wave, passed in zip(question.waves, found.waves_s, strict=True)
        ],
        reached_per_hour=found.reached_per_hour,
        endings={phase.value: count for phase, count in found.endings.items()},
        points=[
            fleet_pb2.ForecastPoint(at_s=one.at_s, exposed=_span(one.exposed), cap=one.cap)
            for one in found.points
        ],
        notes=view.notes,
        fleet=question_text(question),
        fails_on_pct=question.fails_on_pct,
        seed=seed,
    )


def _span(span: Span | None) -> fleet_pb2.Span | None:
    return None if span is None else fleet_pb2.Span(p50=span.p50, p90=span.p90)
