"""What runs on one machine with containers, and how its images are made."""
