"""Faults on purpose: processes killed, frozen and raced, tasks cancelled, each with what the database says afterwards.

Every harness returns a `Report`. The short form is in `test_chaos.py`, the long one is `make chaos`. Beside each
harness stands a negative control: the same harness on a worker with a flaw planted in it, which it has to find.
"""
