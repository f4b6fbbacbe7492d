"""Numbers that compare restored images with the ground truth."""
