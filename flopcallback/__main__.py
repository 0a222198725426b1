"""Entry point of `python -m flopcallback`, the same as the command `flopcallback`."""

from flopcallback.cli.app import main

if __name__ == "__main__":
    main()
