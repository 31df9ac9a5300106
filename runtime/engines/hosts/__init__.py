"""Child-side programs: they run inside the engine process, never in the owner."""
