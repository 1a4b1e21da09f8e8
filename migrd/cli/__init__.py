"""migrctl: the operator's command line. Talks to the HTTP API only; decides nothing."""
