"""The clients: thin shells over the inference core."""
