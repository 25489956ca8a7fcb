"""Bench of the gate: thousands of simulated rollouts through the real planner and judge."""
