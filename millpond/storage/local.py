"""This machine's file system, and any shared file system mounted on it."""


class LocalStorage:
    """Placeholder until the storage slice lands."""
