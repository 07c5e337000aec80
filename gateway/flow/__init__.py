"""The way a snapshot takes, one file per step; `pipeline` holds the order and no step knows the next."""
