"""Annotations of an ``AdaptationCommand`` that the worker and a controller both know."""

from typing import Final

IN_REPLY_TO: Final = "in_reply_to"
"""Id of the state packet that a command answers."""
REASON: Final = "reason"
"""For people; shown wherever the command is."""
POLICY: Final = "policy"
"""Which policy of a controller's it was."""
TAMIYO: Final = "tamiyo"
"""Who answers state packets, in ``issued_by`` and as the source: this, or this, a slash, a name."""
