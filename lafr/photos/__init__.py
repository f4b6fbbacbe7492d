"""Whole photos and videos: find the faces, restore them, put them back."""
