"""From what a user has to a set on disk: fetched, unpacked, checked, aligned, resized, degraded, indexed."""
