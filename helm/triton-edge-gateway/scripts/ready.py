"""Asks whether a gateway is ready, by the Service and else one pod after another; prints what it says."""
# ruff: noqa: INP001, T201, S310 - the command of a container, given as text

import sys
import urllib.error
import urllib.request

service, pods, doctor = sys.argv[1:]
for url in (service, pods):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text, ready = answer.read().decode(), url == service
    except urllib.error.HTTPError as refusal:
        text, ready = refusal.read().decode(), False
    except OSError as error:
        text, ready = f"no answer: {error}", False
    print(f"{url}: {text}")
    if ready:
        sys.exit(0)
sys.exit(f"Not ready. What is wrong, and how to mend it:\n  {doctor}")
