"""What a person types and reads: the commands of `python -m local`, their output, and the demo.

Every expected failure is one sentence on standard error and an exit code other than 0. Nothing else imports this room.
"""
