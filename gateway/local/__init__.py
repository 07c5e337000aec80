"""The embedded stack: a real broker, a real Triton and a camera, for laptops, tests and demos."""
