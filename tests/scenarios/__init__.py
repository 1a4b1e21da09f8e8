"""Stories that an operator can read, played on the simulator. See docs/SIMULATOR.md, "Scenarios"."""
