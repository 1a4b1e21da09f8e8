"""The agent: one per host. Reports what is there, runs one step at a time, refuses stale masters."""
