"""What is measured, by `make bench`. Each module but `rows` and `__main__` gives its rows by a function `rows()`."""
