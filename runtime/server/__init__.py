"""The managed server: launch, readiness, health, logs, restart, stop, snapshot."""
