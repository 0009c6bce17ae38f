"""bert4rec report, as `accelerate launch` and `python` start it; see its --help."""

from bert4rec_hf.commands.report import main

if __name__ == "__main__":
    main()
