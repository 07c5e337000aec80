"""`edge-gateway bench`: the gateway beside a straightforward script, Triton alone and the decoder alone, in one run.

It looks at them from outside, as a camera and a viewer with clients of their own; only the decoder is called directly.
"""
