"""How fast is the store beside the raw driver? `python -m benchmarks` measures, prints a table and writes JSON.

One file per question. Most do the same work by hand on the raw driver and through the store, and some have others do
it who offer the same. Only the ratios within one run mean anything: they survive a slow or a busy machine, milliseconds
do not.
"""
