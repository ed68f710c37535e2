"""``make soak``: a fleet at work, one random fault after the other, and all of it watched."""
