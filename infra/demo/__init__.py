"""The demo: a real run on real data, steered over its bus while it trains (``make demo``)."""
