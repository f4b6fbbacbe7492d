"""Codec, adapter, denoiser, restorer."""
