"""Tolaria: the trainer. Knows no Redis and no asyncio."""
