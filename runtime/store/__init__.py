"""Models: references, catalogue, downloads, GGUF facts, memory plans."""
