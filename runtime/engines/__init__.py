"""Engines: the kinds of llama.cpp server this runtime can start."""
