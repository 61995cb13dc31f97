"""Runs that move from one database to another."""
