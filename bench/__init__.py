"""Benches: each subject against the plainest thing that does the same work, interleaved.

Run from the checkout by ``make bench`` (``python -m bench``). A figure is a ratio wherever there
is something to compare with: absolute times are of one machine, on one day.
"""
