"""The command line: the commands of `python -m local`, their output, and the demo.

An expected failure is reported as one sentence on standard error and an exit code other than 0. No other package imports this one.
"""
