"""Exercises that check the reader's answer, one file per notebook: its docstring begins "Exercises of notebook 09".
base.py defines an exercise, kernel.py one whose answer is a kernel, solved.py and progress.py which ones are solved.

In a notebook:  exercises.megakernel.barriers.check(my_answer)
A notebook's cell contains the skeleton to the letter, and its solution the same text with the hole filled.
tests/test_exercises.py compares them.
"""
