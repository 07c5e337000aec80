"""`python -m gateway` is `edge-gateway`."""

from gateway.cli import main

if __name__ == "__main__":
    main()
