"""`python -m flopcallback` is the command `flopcallback`."""

from flopcallback.cli.app import main

if __name__ == "__main__":
    main()
