"""Tools for tests of code that uses this runtime."""
