"""What an operator sees of a running gateway: health, metrics, API."""
