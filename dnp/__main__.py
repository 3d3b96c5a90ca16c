"""`python -m dnp PROMPT`, and the command `dnp`: the command line, with audits for its page."""

from dnp.app import command_line


def main(argv: list[str] | None = None) -> None:
    command_line.main(argv, audits)


def audits(model, base: dict):
    """The audits of a page's model (`dnp/evaluation/page_audits.py`)."""
    from dnp.evaluation.page_audits import Audits

    return Audits(model, base)


if __name__ == "__main__":
    main()
