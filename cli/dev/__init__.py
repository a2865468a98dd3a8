"""`cuebook dev`: all of a space on one machine, servers and the support desk included."""
