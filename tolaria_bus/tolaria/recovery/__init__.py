"""Recovery: what survives a process, and how a run comes back from it, bit for bit.

:mod:`.journal` is the write-ahead log, :mod:`.timeline` says which of its records count,
:mod:`.ledger` what became of every command, :mod:`.checkpoints` keeps whole states on disk,
:mod:`.weights` gives a model's fingerprint.

Nothing is imported here: the journal can be read by programs that don't need torch.
"""
