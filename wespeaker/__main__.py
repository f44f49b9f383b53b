"""``python -m wespeaker``: see `wespeaker.cli`."""

from wespeaker.cli import main

if __name__ == "__main__":
    main()
