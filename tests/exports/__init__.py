"""Real exports of well-known architectures, made by their own public tools, with the tools' own answers.

Nothing here runs in the ordinary tests: it needs the packages of `requirements.txt`, which no part of the gateway has.
`python -m tests.exports --help` says how to make the models, the answers and the references of `tests/layouts`.
"""

import sys

# The repository's folder `triton` would pass for the compiler of that name, which torch looks for.
sys.modules["triton"] = None  # type: ignore[assignment]
