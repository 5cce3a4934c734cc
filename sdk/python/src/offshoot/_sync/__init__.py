# Made by scripts/generate.py from `_async/`: change that.
