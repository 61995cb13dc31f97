"""All SQL. A repository adds and flushes, and never commits."""
