"""From contract request to engine payload, and from engine events to contract response."""
