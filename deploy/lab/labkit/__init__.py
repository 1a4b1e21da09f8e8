"""labkit: a cluster of real Linux hosts on one machine, for demos, tests and bug reports.

Standard library only: the lab runs on Debian's own python3 before any virtual environment exists.
"""
