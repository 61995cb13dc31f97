"""How fast is the store beside the raw driver? `python -m benchmarks` measures, prints a table and writes JSON.

One file per question; each does the same work twice, by hand on the raw driver and through the store. Only the
ratio of the two within one run means anything: it survives a slow or a busy machine, milliseconds do not.
"""
