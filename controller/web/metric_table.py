"""Every metric of the controller: name, labels, help, and what bounds its series. Only values."""

from lighterman.metrics import Metric, MetricKind

COUNTER, GAUGE, HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

_CLASS = ("model", "version", "rung", "profile", "site")
_CLASSES = "versions x rungs x profiles x sites in use, at most 2,001 of each bucket"
_SINCE_START = " Since this process began; starts anew with it."
_SINCE_EVER = " From the event log: the same after a restart."

INFO = Metric("lighterman_controller_info", GAUGE, "1; the version that runs.", ("version",))
STARTED = Metric(
    "lighterman_controller_start_time_seconds", GAUGE, "When this process began, Unix time."
)
STORE_UP = Metric(
    "lighterman_store_up",
    GAUGE,
    "1 while the database answers. At 0 everything that is read from it is absent.",
)
BROKER_UP = Metric("lighterman_broker_up", GAUGE, "1 while the message broker has us as a client.")
WORKERS = Metric("lighterman_workers", GAUGE, "Build workers heard of in the last minute.")

LATENCY = Metric(
    "lighterman_inference_duration_seconds",
    HISTOGRAM,
    "Service times (the runtime's call alone) that devices told, merged by class, never averaged."
    + _SINCE_START,
    _CLASS,
    _CLASSES,
)
ERRORS = Metric(
    "lighterman_inference_errors_total",
    COUNTER,
    "Inferences that the runtime failed." + _SINCE_START,
    _CLASS,
    _CLASSES,
)
NON_FINITE = Metric(
    "lighterman_inference_non_finite_total",
    COUNTER,
    "Inferences whose outputs held NaN or infinity." + _SINCE_START,
    _CLASS,
    _CLASSES,
)
SERVING = Metric(
    "lighterman_serving_devices",
    GAUGE,
    "Devices online on which this rung of this version answers.",
    ("model", "version", "rung"),
    "versions x rungs in use, at most 2,001",
)

DEVICES = Metric(
    "lighterman_devices",
    GAUGE,
    "Devices that are not retired, by profile (empty: none matches), state and presence.",
    ("profile", "state", "presence"),
    "profiles x 3 states x 2",
)
SILENT = Metric(
    "lighterman_devices_silent",
    GAUGE,
    "Active devices not heard of for at least so many seconds; who counts at 3600 counts at 60. One"
    " that nobody asks anything speaks every 120.",
    ("profile", "seconds"),
    "profiles x 5",
)
BEHIND = Metric(
    "lighterman_devices_behind",
    GAUGE,
    "Active devices that have not applied the generation that they should run.",
)
TEMPERATURE = Metric(
    "lighterman_device_temperature_celsius",
    GAUGE,
    "Over the devices of a profile that are online: median, p95, max (the hottest).",
    ("profile", "statistic"),
    "profiles x 3",
)
MEMORY = Metric(
    "lighterman_device_memory_bytes",
    GAUGE,
    "Memory in use, over the devices of a profile that are online: median, p95, max.",
    ("profile", "statistic"),
    "profiles x 3",
)
BUDGET = Metric(
    "lighterman_profile_latency_budget_seconds",
    GAUGE,
    "What the profile allows a p95 to be.",
    ("profile",),
    "profiles",
)
THROTTLE = Metric(
    "lighterman_profile_throttle_celsius",
    GAUGE,
    "Where devices of the profile begin to throttle.",
    ("profile",),
    "profiles",
)

ROLLOUT_PHASE = Metric(
    "lighterman_rollout_phase",
    GAUGE,
    "1 for the phase that the rollout is in, 0 for the others.",
    ("rollout", "phase"),
    "8 of each rollout that is under way or ended within a day, at most 50 rollouts",
)
ROLLOUT_INFO = Metric(
    "lighterman_rollout_info",
    GAUGE,
    "1; what the rollout brings.",
    ("rollout", "model", "version"),
    "as lighterman_rollout_phase, 1 of each",
)
ROLLOUT_DEVICES = Metric(
    "lighterman_rollout_devices",
    GAUGE,
    "Devices of the rollout by state of their assignment.",
    ("rollout", "state"),
    "as lighterman_rollout_phase, 14 of each",
)
ASSIGNMENTS = Metric(
    "lighterman_assignments", GAUGE, "Assignments of all rollouts, by state.", ("state",), "14"
)
ROLLBACKS = Metric(
    "lighterman_rollbacks_total",
    COUNTER,
    "Devices that left a version. Causes: slow (too many slow inferences in a row), non_finite,"
    " errors, crash, load, ordered (by the controller)." + _SINCE_EVER,
    ("model", "version", "cause"),
    "7 of each of a model's 10 newest versions and of those that were left, at most 2,007 of these",
)
RUNG_CHANGES = Metric(
    "lighterman_rung_changes_total",
    COUNTER,
    "Steps of devices on their ladders. Reasons: temperature, load, memory, cpu, network, latency,"
    " recovered." + _SINCE_EVER,
    ("model", "from", "to", "reason"),
    "models x pairs of rungs x 8, at most 2,008",
)
BUILDS = Metric(
    "lighterman_builds",
    GAUGE,
    "Builds by state, as `fleetctl build list` shows them.",
    ("state",),
    "7",
)

INGEST = Metric(
    "lighterman_ingest_messages_total",
    COUNTER,
    "What devices said: reports and telemetry taken in; malformed ones, those of another version of"
    " the protocol, refused and failed ones not." + _SINCE_START,
    ("outcome",),
    "6",
)
SHED = Metric(
    "lighterman_ingest_shed_total",
    COUNTER,
    "Dropped because more came in than there was room for: messages (reports come again) and"
    " samples." + _SINCE_START,
    ("what",),
    "2",
)
QUEUED = Metric("lighterman_ingest_queue_messages", GAUGE, "Messages that wait to be taken in.")
OUTBOX = Metric("lighterman_outbox_messages", GAUGE, "What must still be told over MQTT.")
OUTBOX_AGE = Metric(
    "lighterman_outbox_age_seconds", GAUGE, "How long the oldest of it waits; 0 when none does."
)

CPU = Metric("process_cpu_seconds_total", COUNTER, "Processor time of this process.")
RESIDENT = Metric("process_resident_memory_bytes", GAUGE, "Memory of this process.")
FILES = Metric("process_open_fds", GAUGE, "Open files and sockets of this process.")
THREADS = Metric("process_threads", GAUGE, "Threads of this process.")

METRICS = (
    INFO, STARTED, STORE_UP, BROKER_UP, WORKERS, LATENCY, ERRORS, NON_FINITE, SERVING, DEVICES,
    SILENT, BEHIND, TEMPERATURE, MEMORY, BUDGET, THROTTLE, ROLLOUT_PHASE, ROLLOUT_INFO,
    ROLLOUT_DEVICES, ASSIGNMENTS, ROLLBACKS, RUNG_CHANGES, BUILDS, INGEST, SHED, QUEUED, OUTBOX,
    OUTBOX_AGE, CPU, RESIDENT, FILES, THREADS,
)  # fmt: skip
