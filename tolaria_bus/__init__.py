"""tolaria-bus: trains PyTorch models as a message-bus component and is steered while it trains."""

__version__ = "0.1.0"
