"""Where the database is, and every fact about a dialect."""
