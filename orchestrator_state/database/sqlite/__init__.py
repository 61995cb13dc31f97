"""SQLite: its connections and its files."""
