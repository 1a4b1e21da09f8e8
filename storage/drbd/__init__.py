"""DRBD 8.4 and 9: parse what the tools say, decide in pure functions, act through drbdadm and drbdsetup."""
