"""Every metric of the agent: name, labels, help, and what bounds its series. Only values."""

from lighterman.metrics import Metric, MetricKind

COUNTER, GAUGE, HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

_RUNG = ("model", "version", "rung")
# `device` tells these series from the controller's of the same names, which never carry it.
_MINE = (*_RUNG, "profile", "device")
_RUNGS = "rungs of the versions that answered, at most 16 of a model"
_SINCE = " Since this process began; starts anew with it."

INFO = Metric(
    "lighterman_agent_info",
    GAUGE,
    "1; the version that runs, and which device this is.",
    ("version", "device", "profile"),
)
STARTED = Metric(
    "lighterman_agent_start_time_seconds", GAUGE, "When this process began, Unix time."
)
CONNECTED = Metric(
    "lighterman_connected",
    GAUGE,
    "1 while the controller or its broker answers. Serving needs neither.",
    ("to",),
    "2",
)
GENERATION = Metric(
    "lighterman_generation",
    GAUGE,
    "The newest desired state that was taken, and the newest that is applied as a whole.",
    ("of",),
    "2",
)

LATENCY = Metric(
    "lighterman_inference_duration_seconds",
    HISTOGRAM,
    "Service times: the runtime's call alone, without the wait. The profile is empty until the"
    " controller has named it." + _SINCE,
    _MINE,
    _RUNGS,
)
ERRORS = Metric(
    "lighterman_inference_errors_total",
    COUNTER,
    "Inferences that the runtime failed." + _SINCE,
    _MINE,
    _RUNGS,
)
NON_FINITE = Metric(
    "lighterman_inference_non_finite_total",
    COUNTER,
    "Inferences whose outputs held NaN or infinity." + _SINCE,
    _MINE,
    _RUNGS,
)
IN_USE = Metric(
    "lighterman_rung_in_use", GAUGE, "1 for the rung that answers now.", _RUNG, "models"
)
QUEUE = Metric(
    "lighterman_queue_requests", GAUGE, "Requests that wait for their turn.", ("model",), "models"
)
QUEUE_AGE = Metric(
    "lighterman_queue_age_seconds",
    GAUGE,
    "The longest wait: of those waiting, or ended within the last second.",
    ("model",),
    "models",
)
REQUESTS = Metric(
    "lighterman_requests_total",
    COUNTER,
    "Requests by outcome: ok, invalid, unknown (no such model; its name is left out),"
    " unavailable, failed." + _SINCE,
    ("model", "outcome"),
    "models x 5",
)
ROLLBACKS = Metric(
    "lighterman_rollbacks_total",
    COUNTER,
    "Versions that this device left. Causes: slow (too many slow inferences in a row), non_finite,"
    " errors, crash, load, ordered (by the controller)." + _SINCE,
    ("model", "version", "cause"),
    "6 of each version that answers, 1 of each that was left",
)
RUNG_CHANGES = Metric(
    "lighterman_rung_changes_total",
    COUNTER,
    "Steps on the ladder. Reasons: temperature, load, memory, cpu, network, latency, recovered."
    + _SINCE,
    ("model", "from", "to", "reason"),
    "models x pairs of rungs x 7",
)

TEMPERATURE = Metric(
    "lighterman_device_temperature_celsius",
    GAUGE,
    "Thermal zones as the kernel tells them.",
    ("zone", "type"),
    "zones of the device",
)
MEMORY = Metric(
    "lighterman_device_memory_bytes",
    GAUGE,
    "Memory of the device: total, and what could be used now without swapping.",
    ("kind",),
    "2",
)
SPOOL = Metric(
    "lighterman_spool_entries", GAUGE, "Reports that the controller has not acknowledged."
)
SPOOL_BYTES = Metric("lighterman_spool_bytes", GAUGE, "Size of the spool on disk.")
SPOOL_REFUSED = Metric(
    "lighterman_spool_refused_total",
    COUNTER,
    "Reports that found no room in the spool." + _SINCE,
)

CPU = Metric("process_cpu_seconds_total", COUNTER, "Processor time of this process.")
RESIDENT = Metric("process_resident_memory_bytes", GAUGE, "Memory of this process.")
FILES = Metric("process_open_fds", GAUGE, "Open files and sockets of this process.")
THREADS = Metric("process_threads", GAUGE, "Threads of this process.")

METRICS = (
    INFO, STARTED, CONNECTED, GENERATION, LATENCY, ERRORS, NON_FINITE, IN_USE, QUEUE, QUEUE_AGE,
    REQUESTS, ROLLBACKS, RUNG_CHANGES, TEMPERATURE, MEMORY, SPOOL, SPOOL_BYTES, SPOOL_REFUSED, CPU,
    RESIDENT, FILES, THREADS,
)  # fmt: skip
