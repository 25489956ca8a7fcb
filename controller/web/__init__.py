"""HTTP: liveness and readiness. Writes nothing."""
