"""The picture of a forecast, as `fleetctl rollout plan --picture` draws it: cores play it."""

from controller.api.convert_forecasts import forecast_message
from controller.cli.forecast import picture
from controller.domain.evidence import Rules
from controller.domain.forecast import DeviceClass, Question, forecast
from controller.domain.wave import parse_waves
from controller.services.forecasts import ForecastView

DEVICES = 1000


def forecast_picture() -> str:
    """A good version over a fleet of which a part is away half of the time."""
    question = Question(
        classes=(
            DeviceClass("gates", 800, away_pct=5, away_s=1800, inferences_per_s=4),
            DeviceClass("yards", 200, away_pct=30, away_s=7200, inferences_per_s=1),
        ),
        waves=parse_waves(("1", "10%", "50%", "100%"), DEVICES).waves,
        rules=Rules(
            soak_s=600, min_samples=200, deadline_s=86_400, slow_threshold_ms=100, p95_budget_ms=100
        ),
        bytes=20_000_000,
    )
    message = forecast_message(ForecastView(forecast(question), question, ()), 1)
    return picture(message, f"detector:1.4.0 to {DEVICES:,} devices")
