"""What is measured, by `make bench`.

A module here that has a function `rows()` is a measurement, and `make bench BENCH=its_name` runs it alone. `rows()`
gives `bench.rows.Row`s as they are measured, and texts between them: notes, to be read with the rows. The first line of
the module's docstring is its heading. `bench/frame` writes it all down.
"""
