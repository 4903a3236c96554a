"""Millpond's version, where the packaging and every room can read it."""

VERSION = "0.1.0"
