"""Storage drivers: find a guest's disks, prove they are the same disk on two hosts, hand them over.

Used by agents only. Drivers are three small parts: build argv, parse output, run.
"""
