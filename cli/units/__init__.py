"""systemd: units written for a machine, and what a process owes systemd as one of them."""
