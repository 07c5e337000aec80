"""The gateway between real parts that die, hang and fill up, and an auditor who misses no snapshot."""
