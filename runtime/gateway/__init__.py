"""The gateway: one address, in the protocols that clients speak, before supervised engines."""
