"""From a download to a dataset on disk: fetched, unpacked, checked, aligned, resized, degraded, indexed."""
