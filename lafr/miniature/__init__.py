"""What exists only to build the 128 px miniature of Stable Diffusion that is shipped."""
