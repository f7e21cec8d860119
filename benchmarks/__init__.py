"""What minifast costs beside hand-written loops and other frameworks.

python -m benchmarks --quick      a minute: two jobs, two rounds, no peers; prints a table
python -m benchmarks              the whole: writes docs/how-fast.md and its pictures
python -m benchmarks growth       how cost grows with rows, batch, parameters and callbacks
python -m benchmarks.dispatch     what the events of a step cost
"""
