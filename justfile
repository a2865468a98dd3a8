set shell := ["bash", "-euo", "pipefail", "-c"]

# What CI runs: formatting, lint, types, then the tests, which also check the documentation and the wheel
ci: format-check lint types test

# Rewrite the code in the one format
format:
    uv run ruff check --quiet --select I --fix
    uv run ruff format

# Fail if `just format` would change something
format-check:
    uv run ruff format --check

# Look for mistakes that need no running
lint:
    uv run ruff check

# Check every type, the tests' included
types:
    uv run mypy

# Run the tests, or some of them: just test tests/events -k codec
test *arguments:
    uv run pytest {{ arguments }}

# Let agents, processes and machines come, go and die while 1,000 tasks/s flow; ROUNDS times the story of the test
test-growing rounds="10":
    GROWING_ROUNDS={{ rounds }} uv run pytest tests/cli/serving/test_growing.py --capture=no -n 0

# Check the wire format from Node; needs node and npm
test-node:
    @command -v npm >/dev/null || { echo "error: npm is missing; apt-get install nodejs npm, or take it from nodejs.org" >&2; exit 1; }
    npm --prefix tests/node install --silent
    uv run pytest tests/node/check_node.py

# Check the systemd units on a machine that it boots; needs root, systemd-nspawn, and a Python of the system
test-systemd *arguments:
    @command -v systemd-nspawn >/dev/null || { echo "error: systemd-nspawn is missing; apt-get install systemd-container" >&2; exit 1; }
    @[ "$(id -u)" = 0 ] || { echo "error: booting a machine needs root; sudo just test-systemd" >&2; exit 1; }
    uv run pytest --numprocesses 0 tests/systemd/check_systemd.py tests/systemd/check_edge.py tests/systemd/check_full_disk.py {{ arguments }}

# Watch agents at the edge go on while the link is cut: two servers, on this machine; --step waits for Enter
edge *arguments:
    uv run python -m cuebook.cli.demo.edge_story {{ arguments }}

# Check that cuebook runs on arm64: wheels of all dependencies, then its code under emulation; needs qemu and apt-get
check-arm64 *arguments:
    @command -v qemu-aarch64-static >/dev/null || { echo "error: qemu-aarch64-static is missing; apt-get install qemu-user-static" >&2; exit 1; }
    @command -v apt-get >/dev/null || { echo "error: apt-get is missing: Debian's Python for arm64 comes from it" >&2; exit 1; }
    uv run pytest tests/arm64/check_arm64.py --timeout=1800 -s {{ arguments }}

# Run everything on this machine, on three nats-servers that are one cluster; see it with one of them killed
cluster *arguments:
    uv run cuebook dev --nodes 3 {{ arguments }}

# Start Jaeger with its pages on 16686 and OTLP on 4317 and 4318; needs its program or docker
jaeger:
    @if command -v jaeger >/dev/null; then exec jaeger; \
    elif command -v docker >/dev/null && docker info >/dev/null 2>&1; then \
        exec docker run --rm -p 127.0.0.1:16686:16686 -p 127.0.0.1:4317:4317 -p 127.0.0.1:4318:4318 jaegertracing/jaeger:2.5.0; \
    else echo "error: neither jaeger nor a running docker is here; take the program 'jaeger' (version 2) from github.com/jaegertracing/jaeger/releases, put it on PATH, and try again" >&2; exit 1; fi

# See a run through Jaeger's own query interface; needs the program `jaeger`
test-jaeger:
    @command -v jaeger >/dev/null || { echo "error: jaeger is missing; take version 2 from github.com/jaegertracing/jaeger/releases" >&2; exit 1; }
    uv run pytest tests/telemetry/check_jaeger.py

# Check hypertables; needs a PostgreSQL with TimescaleDB: its programs, or the URL of one that runs, for postgres without a password
test-timescale *arguments:
    @[ -n "${CUEBOOK_TEST_TIMESCALE_BIN:-}${CUEBOOK_TEST_TIMESCALE_URL:-}" ] || { echo "error: no PostgreSQL with TimescaleDB is named; install postgresql and timescaledb-2-postgresql-18 (packages as docs.tigerdata.com says, or built from github.com/timescale/timescaledb) and set CUEBOOK_TEST_TIMESCALE_BIN to the folder with its postgres and initdb, or CUEBOOK_TEST_TIMESCALE_URL to a running one" >&2; exit 1; }
    uv run pytest -m "not native${CUEBOOK_TEST_TIMESCALE_URL:+ and not own_server}" {{ if arguments == "" { "tests/timescale/check_timescale.py tests/projections tests/cli/test_projection.py" } else { arguments } }}

# Let a real Prometheus scrape real processes and try every query of dashboards and alerts; needs the program `prometheus`
test-prometheus *arguments:
    @command -v prometheus >/dev/null && command -v promtool >/dev/null || { echo "error: prometheus and promtool are missing; apt-get install prometheus, or take them from prometheus.io/download" >&2; exit 1; }
    uv run --with grafana-foundation-sdk pytest --numprocesses 0 tests/monitoring/check_grafana.py tests/monitoring/check_prometheus.py {{ arguments }}

# Write again those parts of the documents that follow from the code
docs:
    uv run python -m tests.wire_format
    uv run python -m tests.monitoring.dashboards
    uv run python -m tests.monitoring.document

# Measure throughput and latency on this machine
bench *arguments:
    uv run python -m benchmarks {{ arguments }}

# Kill agents and orchestrators, and measure how long until others have taken over; --rounds for how often
bench-failover *arguments:
    uv run python -m benchmarks.failover {{ arguments }}

# Measure reading, sealing, exporting, verifying and rebuilding from a log of a million events; --events for another size
bench-replay *arguments:
    uv run python -m benchmarks.replay {{ arguments }}
    uv run python -m benchmarks.rebuild {{ arguments }}
    uv run python -m benchmarks.segments {{ arguments }}

# Make the wheel and the source distribution in dist/
build:
    uv build --clear

# Remove what builds, tests and tools leave behind; the data of the embedded servers stays
clean:
    rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache build cuebook.egg-info dist tests/node/node_modules
