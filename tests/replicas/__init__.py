"""Several gateways that share their cameras by `$share`, and what becomes of the snapshots when one of them goes."""
