"""Mutation testing: makes one small change of the package at a time and looks for a failing test.

    python -m tests.mutants                        # 100 mutants drawn with seed 1
    python -m tests.mutants --only model,plugins/ema --count 20
    python -m tests.mutants --matching "run.step += 1"
    python -m tests.mutants --list                 # what would be run

A mutant that no test notices has SURVIVED: write the test, delete the code if it does nothing, or
list the mutant in `equivalent.toml` with the reason why it changes nothing that a user can see.
The mutants run in a copy of the repository. A mutant keeps its place in the draw as long as its
line stays as it is.
"""
