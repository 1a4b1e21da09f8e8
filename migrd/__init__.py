"""The daemon: model of the cluster, planner, journal, executor, API, and migrctl."""
