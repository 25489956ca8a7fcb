"""What a build's outputs mean and what they are worth, by the version's task; one file per matter.

`judge.judge_of` gives what reads and compares answers. Knows no runtime; the gate decides.
"""
