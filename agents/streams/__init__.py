"""The TCP connections over which guests leave this host."""
