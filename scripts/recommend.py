"""bert4rec recommend, as `accelerate launch` and `python` start it; see its --help."""

from bert4rec_hf.commands.recommend import main

if __name__ == "__main__":
    main()
