"""Run the command line as ``python -m stagemeter``."""

from stagemeter.cli import main

if __name__ == "__main__":
    main()
