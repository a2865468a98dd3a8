"""The tables in PostgreSQL: how far they are, and building them again."""
