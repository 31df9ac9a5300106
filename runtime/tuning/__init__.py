"""Measuring on this machine: real workloads, who answers them, and what came of it."""
