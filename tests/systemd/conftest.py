"""Tests that boot a machine: `make test-systemd`. Not part of the default run."""

import os

collect_ignore_glob = [] if os.environ.get("LIGHTERMAN_TEST_SYSTEMD") else ["test_*.py"]
