"""Power limits: set and restore one, sweep over them, model a sweep."""
