"""`serve --workers N`: one session with the broker and one HTTP surface for several processes (decision 0023)."""
