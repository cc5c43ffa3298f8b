"""A crash test: real workers are killed at chosen instants, files checked, runs gone on with.

`nursery` forks workers from a process that has torch loaded; `blow` lets a worker end at an
instant and notes what a power failure would take; `power` takes it; `inspection` looks at every
file; `chain` kills and resumes a training to its end and compares it with one that was never
killed.

    python -m tests.crash --kills 100 --seed 1 --json benchmarks/results/crash.json
"""
