"""Pomona trains a server language model and its on-device sibling from one recipe."""

__version__ = "0.1.0"
