"""Checkpoints of the published HRM and TRM code, made into checkpoint folders of ours.

layout      reads such a file, and says what it holds
convert     makes the folder; its `import_checkpoint` is what `loopwise import` calls
forward     the published model written down once more, to check each import against
"""
