"""The base model: where it comes from, in which format, and whether it is a supported one."""
