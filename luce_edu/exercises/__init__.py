"""Exercises that check themselves. One file for each notebook; base.py says what an exercise is, kernel.py what one is
whose answer is a kernel.

In a notebook:  exercises.megakernel.barriers.check(my_answer)
A notebook's cell holds the skeleton to the letter, and its solution the same text with the hole filled:
tests/test_exercises.py compares them.
"""
