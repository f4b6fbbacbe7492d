"""Evaluation: restore a test set by several methods, score the PNG files, compare. Resumable, in several processes.

`Plan` -> `evaluate` -> `publish`. `methods` says what is compared, `restored` writes the images, `scoring` and
`latents` measure, `progress` and `cache_keys` decide what a stopped run keeps. `outputs` finds other methods' images,
`checking` decides whether a folder is the set it claims to be, `sweep` draws the fidelity-realism curve. `tables`,
`published` and `report` show results.
"""
