"""The demo: a document pipeline that is killed in the middle of a step and recovered from the database."""
