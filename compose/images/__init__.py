"""The images: what their builds run, and how they are built, saved and loaded."""
