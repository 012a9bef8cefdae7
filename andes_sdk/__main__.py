"""`python -m andes_sdk` is `andes`."""

from andes_sdk.cli import main

if __name__ == "__main__":
    main()
