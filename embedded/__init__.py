"""Real servers on this machine: nats-server and PostgreSQL, started and stopped by the program."""
