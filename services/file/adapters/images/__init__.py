"""Makes the renditions of images, each in a process of its own.

`pool` is the side of the worker, `process` the confined side, `rendering` all that touches Pillow, `messages` what both say to each
other. Nothing is imported here: the confined process should not load what the worker needs.
"""
