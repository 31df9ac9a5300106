"""The gateway: one stable address for clients of several protocols, before supervised engines."""
