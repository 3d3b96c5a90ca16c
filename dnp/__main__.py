"""`python -m dnp PROMPT`: the command line (`dnp/app/command_line.py`)."""

from dnp.app.command_line import main

if __name__ == "__main__":
    main()
