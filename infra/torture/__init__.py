"""``make torture``: kill a steered run again and again; nothing may be lost, nothing done twice."""
