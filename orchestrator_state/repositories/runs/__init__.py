"""The SQL of durable runs: under a lease, and on the way to one."""
