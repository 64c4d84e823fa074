"""Power limits: setting and restoring one, sweeps, and models of a sweep."""
