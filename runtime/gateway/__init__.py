"""The gateway: one stable address, in the protocols that clients speak, before supervised engines."""
