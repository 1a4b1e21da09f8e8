"""Commands of the daemon, one attempt at a time per guest: begun once, remembered, answered for ever."""
