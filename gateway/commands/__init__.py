"""The commands of `edge-gateway`, one file each; with gateway.app they are where the parts are put together."""
