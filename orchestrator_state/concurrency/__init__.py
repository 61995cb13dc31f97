"""Tasks, threads and processes: what asyncio leaves to its users."""
