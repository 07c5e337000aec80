"""What can be served: the specification of a model, where it lies, and what of it Triton serves now."""
