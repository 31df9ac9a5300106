"""The keeper: a small process between owner and engine. It runs outside this package.

``start.py`` is the script that the launcher runs; nothing here may import from above this folder.
"""
