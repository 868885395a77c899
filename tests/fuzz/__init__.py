"""Fuzzing: damaged and hostile files of every kind that `build` reads. Not a part of pytest's run but for one minute.

    python -m tests.fuzz --minutes 10
    python -m tests.fuzz --only lock --seed 7 --number 812     one case again

A case follows from (kind, seed, number). Whatever it holds, the answer is success or an error in words.
"""
