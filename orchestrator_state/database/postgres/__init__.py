"""Postgres: its connections and what a URL says of them."""
